# SPDX-License-Identifier: Apache-2.0
"""All Fabric tasks, as ``fab -l`` lists them.  What they do is done by the modules that they call."""

from invoke.collection import Collection

from node_automation import experiment_tasks, lease_tasks, node_tasks, site_tasks

namespace = Collection(
    lease_tasks.collection,
    node_tasks.collection,
    site_tasks.nodes,
    site_tasks.sites,
    site_tasks.collect_garbage,
    *experiment_tasks.TASKS,
)
