"""The commands that work on the coordinator's host, with its configuration and its keys."""

from __future__ import annotations

from pathlib import Path

from common.cli.parser import Commands, Parser
from coordinator.cli.parser_parts import group, local, remote


def add_local(commands: Commands[Parser]) -> None:
    init = local(
        commands,
        "init",
        "write configuration, keys, CA and the first operator's certificate",
        """Make what is missing, and leave alone what is there: a key is never overwritten, so it is safe to repeat.

examples:
  accord-coordinator init --federation hospitals --host accord.example.org
  accord-coordinator init --config /etc/accord/coordinator.toml      (keys for a configuration that is there)""",
    )
    init.add_argument("--federation", metavar="NAME", help="name of the federation; stands in every certificate")
    init.add_argument("--data-folder", metavar="FOLDER", help="default: data, beside the configuration")
    init.add_argument(
        "--host", action="append", metavar="NAME", help="DNS name or address that partners dial; may be repeated"
    )
    init.add_argument("--operator", default="admin", metavar="NAME", help="the first operator (default: admin)")
    serve = local(
        commands,
        "serve",
        "serve until SIGTERM or Ctrl-C",
        """Serve participants, operators and probes. May be killed at any time: it goes on in the same state of the same
round. The addresses that it really listens on are in listeners.json in the data folder.

examples:
  accord-coordinator serve --config /etc/accord/coordinator.toml""",
    )
    serve.set_defaults(json=False)
    local(
        commands,
        "check-config",
        "show every mistake in the configuration at once",
        """Read the configuration and the files that it names, and ask the database which schema it has. Starts nothing
and changes nothing; a bucket is tried with an object that is stored, read and deleted again.

examples:
  accord-coordinator check-config --config coordinator.toml
  accord-coordinator check-config --json""",
        command="check_config",
    )
    moving = local(
        commands,
        "migrate",
        "bring the database to this version's schema, or move it to PostgreSQL",
        """Make the database, or bring it forward. Back it up first; harmless if there is nothing to do.
`serve` does the same by itself unless database.migrate_on_start is false.

With --to all rows of a SQLite database go into an empty PostgreSQL database, in one transaction: all of them or none.
Every table is compared and the audit log verified; the SQLite file stays as it is. Stop the coordinator first.

examples:
  accord-coordinator migrate
  accord-coordinator migrate --to-file /etc/accord/database.url     (a file with the URL, because it has a password)""",
    )
    moving.add_argument("--to", metavar="URL", help="postgresql://user@host/database, which PGPASSWORD may complete")
    moving.add_argument("--to-file", type=Path, metavar="FILE", help="the same on the first line of a file")


def add_blobs(commands: Commands[Parser]) -> None:
    actions = group(
        commands, "blobs", "where masked uploads and adapters lie", "Blobs lie in a folder or in an S3 bucket."
    )
    copy = local(
        actions,
        "copy",
        "copy all blobs into another store",
        """Copy every blob from blobs.url to another place, and read it back there. The source is left as it is. May be
ended and repeated: what is there already is compared and not sent again. How a bucket is reached says [blobs] in the
configuration (endpoint, region, credentials_file, ca_file), while its url still names the source.

The coordinator may serve during the first copy. Then stop it, copy once more, change blobs.url, and start it.

examples:
  accord-coordinator blobs copy --to s3://accord-blobs/hospitals
  accord-coordinator blobs copy --to file:///srv/accord/blobs --json""",
        command="blobs",
        action="copy",
    )
    copy.add_argument("--to", required=True, metavar="URL", help="s3://bucket/prefix or file:///absolute/folder")


def add_operator(commands: Commands[Parser]) -> None:
    actions = group(
        commands,
        "operator",
        "certificates for the people who run the federation",
        "Roles: viewer sees, operator runs, security-officer decides who belongs. Needs the CA's key, so its host.",
    )
    create = local(
        actions,
        "create",
        "make a key and a certificate for a person",
        """Write operator.key, operator.pem and ca.pem into a folder; give the folder to the person, safely.

examples:
  accord-coordinator operator create alice --role operator --out alice
  accord-coordinator operator create auditor --role viewer""",
        command="operators",
        action="create",
    )
    create.add_argument("name", metavar="NAME", help="id of the person, as the audit log shows it")
    create.add_argument(
        "--role", default="operator", choices=("viewer", "operator", "security-officer"), help="default: operator"
    )
    create.add_argument("--out", type=Path, metavar="FOLDER", help="default: operators/NAME in the data folder")
    local(
        actions,
        "list",
        "list the operators whose certificates lie in the data folder",
        "List operators whose certificates lie in the data folder, with role, state and end.",
        command="operators",
        action="list",
    )
    renew = local(
        actions,
        "renew",
        "make a new key and certificate for an operator whose folder is here",
        """Replaces the files in the operator's folder; the old certificate stays good until it ends or is revoked.

examples:
  accord-coordinator operator renew alice
  accord-coordinator operator renew alice --folder alice""",
        command="operators",
        action="renew",
    )
    renew.add_argument("name", metavar="NAME")
    renew.add_argument("--folder", type=Path, metavar="FOLDER", help="default: operators/NAME in the data folder")
    revoke = local(
        actions,
        "revoke",
        "refuse an operator's certificate from its next call on",
        """Works while the coordinator runs, and without it.

examples:
  accord-coordinator operator revoke alice
  accord-coordinator operator revoke alice --serial 4f2a...    (a certificate that is not in the data folder)""",
        command="operators",
        action="revoke",
    )
    revoke.add_argument("name", metavar="NAME")
    revoke.add_argument("--serial", metavar="HEX", help="the certificate's serial number")


def add_authority(commands: Commands[Parser]) -> None:
    """`ca`: which CAs count, and the steps by which one takes another's place."""
    actions = group(
        commands,
        "ca",
        "the CA that certifies participants, operators and the coordinator",
        """Another CA takes over in three steps, with nothing restarted and nobody cut off: `ca begin`, `ca switch`,
`ca retire`. `ca show` says which step is next and for whom it would be too early.""",
    )
    local(
        actions,
        "show",
        "which CAs count, and who knows and uses which",
        """The CAs, every participant's and operator's certificate, and what is to be done next.

examples:
  accord-coordinator ca show
  accord-coordinator ca show --json""",
        command="authorities",
        action="show",
    )
    local(
        actions,
        "begin",
        "make another CA, which counts from now on and issues nothing yet",
        """Daemons of participants renew their certificates with their next call, and get both CAs with them. Publish a
charter that lists both (`charter draft` does) before you switch: members accept only certificates of its CAs.

examples:
  accord-coordinator ca begin""",
        command="authorities",
        action="begin",
    )
    switch = local(
        actions,
        "switch",
        "let the other CA issue from now on",
        """The coordinator shows a certificate of the new CA at once, participants renew with their next call, and the
old CA's key is destroyed. Refused while a participant has not heard of the new CA, or an open run's charter lists only
the old one.

examples:
  accord-coordinator ca switch
  accord-coordinator ca switch --force     (cut off who is not ready: they need a new join token)""",
        command="authorities",
        action="switch",
    )
    retire = local(
        actions,
        "retire",
        "let the old CA count no more",
        """Certificates that the old CA has issued are refused from the next connection on. Refused while a participant
or an operator still has one. Before `ca switch` it gives the new CA up instead.

examples:
  accord-coordinator ca retire""",
        command="authorities",
        action="retire",
    )
    for parser in (switch, retire):
        parser.add_argument("--force", action="store_true", help="do it all the same, and cut off who is not ready")
    trust = remote(
        actions,
        "trust",
        "fetch the CAs that count into an operator's ca.pem",
        """For operators elsewhere, between `ca begin` and `ca switch`: afterwards the old file knows the coordinator no
more.

examples:
  accord-coordinator ca trust --address accord.example.org:8445 --cert operator.pem --key operator.key --ca ca.pem \\
      --out ca.pem""",
        command="authorities",
        action="trust",
    )
    trust.add_argument("--out", type=Path, metavar="FILE", help="default: standard output")
