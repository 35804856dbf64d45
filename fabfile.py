# SPDX-License-Identifier: Apache-2.0
"""`fab -l` lists the tasks, `fab --help TASK` tells of one.  Those of node_automation."""

from node_automation.tasks import namespace

__all__ = ["namespace"]
