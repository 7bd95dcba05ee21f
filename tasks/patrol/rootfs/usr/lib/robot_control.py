"""Controls the robot dog (simulated: no robot is moved).

    from robot_control import RobotControlClient
    text, step, done = RobotControlClient().forward("1m")
"""

import json
import pathlib
import socket

STATE = pathlib.Path("/tmp/robot_state.json")
BUTTON = pathlib.Path("/tmp/shutdown_requested")


class RobotControlClient:
    """Every move counts as one step of the patrol and returns (text, step, done)."""

    def _ask(self, request):
        with socket.socket(socket.AF_UNIX) as controller:
            controller.connect("\0console")
            controller.sendall(f"{request}\n".encode())
            answer = b""
            while part := controller.recv(4096):
                answer += part
        return answer[1:].decode()

    def _move(self, name, parameter):
        text, step, done = self._ask(f"move {name} {parameter}").split("\n")
        STATE.write_text(json.dumps({"step": int(step)}))
        return text, int(step), done == "done"

    def forward(self, distance="1m"):
        return self._move("forward", distance)

    def backward(self, distance="1m"):
        return self._move("backward", distance)

    def left(self, angle="30deg"):
        return self._move("left", angle)

    def right(self, angle="30deg"):
        return self._move("right", angle)

    def say_hello(self, parameter=""):
        return self._move("say_hello", parameter)

    def do_nothing(self, parameter=""):
        return self._move("do_nothing", parameter)

    def announce(self, name):
        """Tell the controller that a move is about to be asked for."""
        self._ask(f"announce {name}")

    @property
    def is_shutdown_button_pressed(self):
        return BUTTON.exists()

    def stop_robot(self):
        self._ask("stop")
