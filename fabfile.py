# SPDX-License-Identifier: Apache-2.0
"""`fab -l` lists the tasks, `fab --help TASK` tells of one.  They are those of node_automation.tasks."""

from node_automation.tasks import namespace

__all__ = ["namespace"]
