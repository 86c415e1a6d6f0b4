"""The configuration file that `init` writes: every key with its meaning, and what is usual commented out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from string import Template
from typing import Final

_TEMPLATE: Final = Template(
    """\
# Accord coordinator. `accord-coordinator check-config --config FILE` checks it; unknown keys are errors.
# What is commented out shows its default. Relative paths are relative to this file's folder.

# Name of the federation: it stands in every certificate and cannot change later.
federation = $federation

# Database, blobs, keys and the certificate authority, where nothing below says otherwise.
data_folder = $data_folder

[database]
# url = "sqlite:////srv/accord/coordinator.sqlite"       # default: coordinator.sqlite in the data folder
# url = "postgresql://accord@db.example.org/accord"      # for replicas; docs/operations-state.md
# url_file = "$${CREDENTIALS_DIRECTORY}/database.url"     # or the first line of a file: a credential of the service
# migrate_on_start = true                                # false: `accord-coordinator migrate` is a step of its own

[blobs]
# url = "file:///srv/accord/blobs"                       # default: blobs in the data folder
# url = "s3://bucket/prefix"                             # for replicas; docs/operations-blobs.md
# endpoint = "https://s3.example.org"                    # a service other than AWS's
# region = "us-east-1"
# credentials_file = "$${CREDENTIALS_DIRECTORY}/s3.ini"   # in AWS's form; default: the environment, or the host's role
# ca_file = "s3-ca.pem"                                  # a CA of your own that certifies the endpoint
# kept_rounds = 3                                        # rounds whose uploads are kept for audits: disk for each

# Participants dial this one with their certificates (mutual TLS).
[participants]
listen = "0.0.0.0:8443"
public_address = $participants_address  # what join tokens tell participants to dial

# Only EnrollmentService/Enroll, for those who do not have a certificate yet (server TLS).
[enrollment]
listen = "0.0.0.0:8444"
public_address = $enrollment_address

# Operators, with operator certificates. Keep it inside your network.
[admin]
listen = "127.0.0.1:8445"
# reflection = true                                      # grpcurl and buf curl need no .proto files

# Plaintext, for probes and Prometheus. Keep it inside the host or the cluster.
[health]
http = "127.0.0.1:8080"                                  # /healthz, /readyz, /metrics; "" turns it off
grpc = "127.0.0.1:8081"                                  # grpc.health.v1; "" turns it off

# The federation as a web page: HTTPS, read-only. It needs the extra accord[web].
[web]
listen = ""                                              # "" is off; "127.0.0.1:8446" for example
# tokens = true                                          # web tokens let people in beside operators' certificates

# /metrics on a listener of its own, with mutual TLS; the plaintext listener above then shows none (docs/monitoring.md).
[metrics]
# listen = ""                                            # "0.0.0.0:9464" for example
# certificate = "tls/metrics.pem"
# key = "tls/metrics.key"
# client_ca = "tls/prometheus-ca.pem"                    # who scrapes shows a certificate of this CA

# Traces, by OpenTelemetry (OTLP over gRPC). They need the extra accord[tracing].
[tracing]
# endpoint = ""                                          # "http://127.0.0.1:4317", or https:// for TLS
# ca = "tls/collector-ca.pem"

[certificates]
mode = "own"                                             # the coordinator's own small CA
host_names = $host_names  # "localhost" and 127.0.0.1 are added
# participant_days = 30                                  # they renew by themselves
# operator_days = 90
# mode = "files"                                         # certificates of your own PKI instead
# certificate = "tls/coordinator.pem"                    # leaf first
# key = "tls/coordinator.key"                            # or "$${CREDENTIALS_DIRECTORY}/tls.key"
# participant_cas = "tls/partners.pem"                   # every CA whose participants are accepted
# operator_cas = "tls/operators.pem"                     # every CA whose operators are accepted

# Replicas share their keys: name the folder by keys.folder (docs/operations-state.md).

[log]
# format = "json"                                        # or "console"
# level = "info"                                         # debug, info, warning, error

[limits]
# message_bytes = 4194304
# streams_per_connection = 100
# upload_bytes = 8589934592                              # largest masked update
# calls_per_second = 50.0                                # of one caller
# calls_burst = 200
# recorded_calls_per_minute = 30.0                       # of one caller, such as leave a line in the audit log
# recorded_burst = 100
# open_calls = 64                                        # of one caller at once
# connections = 4096                                     # of all callers on one listener
# connections_per_caller = 32                            # a participant has two
# connections_per_address = 256                          # 0 behind a balancer, which then has to limit them
# stop_grace_seconds = 10.0                              # open streams get this long when the process is told to stop
"""
)


def render(*, federation: str, data_folder: str, host_names: Sequence[str]) -> str:
    """A whole coordinator.toml. The first host name is what join tokens tell participants to dial."""
    return _TEMPLATE.substitute(
        federation=json.dumps(federation),
        data_folder=json.dumps(data_folder),
        participants_address=json.dumps(f"{_dialled(host_names[0])}:8443"),
        enrollment_address=json.dumps(f"{_dialled(host_names[0])}:8444"),
        host_names=json.dumps(list(host_names)),
    )


def _dialled(host: str) -> str:
    return f"[{host}]" if ":" in host else host
