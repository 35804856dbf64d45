# SPDX-License-Identifier: Apache-2.0
"""What Python 3.10 (Ubuntu 22.04) lacks of the versions after it."""

import sys

if sys.version_info >= (3, 11):
    from enum import StrEnum
else:  # the same behaviour: members print and format as their values
    from enum import Enum

    class StrEnum(str, Enum):
        __str__ = str.__str__


__all__ = ["StrEnum"]
