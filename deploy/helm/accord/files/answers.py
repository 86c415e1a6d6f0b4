"""What `helm test` runs: is the coordinator ready, does it show metrics, and does it speak TLS to partners?"""

import os
import socket
import ssl
import sys
import urllib.request

health = os.environ["ACCORD_HEALTH"]
for path, wanted in (("/readyz", '"ready": true'), ("/metrics", "accord_")):
    with urllib.request.urlopen(health + path, timeout=10) as answer:  # noqa: S310  http, by the template
        if wanted not in answer.read().decode():
            sys.exit(f"{health}{path} does not say {wanted}")
    print(f"{health}{path}: ok")
for listener in os.environ["ACCORD_LISTENERS"].split():
    host, _, port = listener.rpartition(":")
    # Whether there is TLS at all; whose certificate it is, participants check against their join token.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, int(port)), 10) as plain, context.wrap_socket(plain) as secure:
        if secure.selected_alpn_protocol() != "h2":
            sys.exit(f"{listener} speaks TLS and no HTTP/2: is there a balancer in between that ends TLS?")
    print(f"{listener}: ok")
