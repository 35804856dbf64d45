# SPDX-License-Identifier: Apache-2.0
"""What every program of this project needs and no domain knows: errors, settings, processes, files."""

__version__ = "0.1.0"
