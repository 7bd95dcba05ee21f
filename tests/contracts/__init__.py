"""What every implementation of a protocol promises, written once and run against each."""

import pytest

pytest.register_assert_rewrite("tests.contracts.sandbox")
