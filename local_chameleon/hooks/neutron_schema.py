# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="import-not-found"
"""Make Neutron's database on SQLite: ``neutron_schema.py URL``.

Its migrations change constraints, which SQLite does not allow; so the tables are made of the models, and the rows that
a migration would have put into them (the rules of every new security group) are put in here.

This module runs in the services' environment, never in this program's own.
"""

import sys
import uuid

import sqlalchemy
from neutron.db.migration.models import head

# direction, ether type, from whom, in groups that are made by users as well
_RULES = (
    ("egress", "IPv4", None, True),
    ("egress", "IPv6", None, True),
    ("ingress", "IPv4", "PARENT", False),
    ("ingress", "IPv6", "PARENT", False),
)


def main(url: str) -> None:
    """Make all tables, and fill the one that needs it."""
    engine = sqlalchemy.create_engine(url)
    tables = head.get_metadata()
    tables.create_all(engine)
    attributes, rules = tables.tables["standardattributes"], tables.tables["securitygroupdefaultrules"]
    with engine.begin() as connection:
        for direction, ethertype, remote, everywhere in _RULES:
            row = connection.execute(
                attributes.insert().values(resource_type="security_group_default_rules", revision_number=0)
            )
            connection.execute(
                rules.insert().values(
                    id=str(uuid.uuid4()),
                    standard_attr_id=row.inserted_primary_key[0],
                    direction=direction,
                    ethertype=ethertype,
                    remote_group_id=remote,
                    used_in_default_sg=True,
                    used_in_non_default_sg=everywhere,
                )
            )


if __name__ == "__main__":
    main(sys.argv[1])
