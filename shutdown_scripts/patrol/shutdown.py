#!/usr/bin/env python3
"""Takes the robot's machine down."""

import os
import signal
import sys

import robot_control

print("Shutting down...", flush=True)
try:
    robot_control.RobotControlClient().stop_robot()
except OSError as error:
    print(f"The robot could not be stopped: {error}", file=sys.stderr)
os.kill(1, signal.SIGTERM)
