"""The web page on a real coordinator: who gets in, what every page shows, what it never shows, and what it costs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from accord.v1 import admin_pb2 as pb
from common.certificates import parse_certificates, serial_text
from common.identifiers import Role
from coordinator import web_tokens
from coordinator.cli.files import OPERATOR_CERTIFICATE
from coordinator.keystore import PkiFolder
from coordinator.rounds.model import AuditEvent, ParticipantState, ParticipationState, RunMember
from coordinator.services.admin import AdminServicer
from coordinator.web.site import HEADERS
from tests.rpc.browsing import Answer, Reader
from tests.rpc.coordinator import CONFIG, RunningCoordinator, running_coordinator
from tests.rpc.crowd import DOMAINS, RUN, fill
from tests.rpc.federation import federation_in
from tests.rpc.showcase import WEB
from tests.secrets_spy import spying

ROUNDS = 60
OPEN_ROUND = ROUNDS + 1
# A page of fifty rows with all that stands around it.
MOST_BYTES = 120_000
PAGES = (
    "/",
    "/runs",
    f"/runs/{RUN}",
    f"/runs/{RUN}/rounds/{OPEN_ROUND}",
    f"/runs/{RUN}/rounds/1",
    f"/runs/{RUN}/adapters",
    "/participants",
    "/participants/hospital-0007",
    "/audit",
    "/audit?verify=1",
)


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory):
    with running_coordinator(tmp_path_factory.mktemp("web"), CONFIG + WEB) as running:
        fill(running, participants=1000, rounds=ROUNDS)
        yield running


@pytest.fixture(scope="module")
def viewer(coordinator) -> Reader:
    return reader(coordinator, "vera", Role.VIEWER)


@pytest.fixture
def stranger(coordinator) -> Reader:
    return Reader(coordinator.addresses.web, PkiFolder(coordinator.config.pki_folder).authority_certificate)


def reader(coordinator: RunningCoordinator, name: str, role: Role) -> Reader:
    return Reader.of_folder(coordinator.addresses.web, coordinator.operator_folder(name, role))


def token(coordinator: RunningCoordinator, label: str = "wallboard", *, seconds: int = 600) -> tuple[str, str]:
    """A token's name and its text."""
    made = coordinator.admin().CreateWebToken(pb.CreateWebTokenRequest(label=label, ttl_seconds=seconds))
    return made.web_token.name, made.token


def adapter_page(coordinator: RunningCoordinator) -> str:
    with coordinator.store.read() as reader:
        return f"/runs/{RUN}/adapters/{reader.run(RUN).accepted_adapter}"


# --- who gets in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
def test_nobody_sees_a_page_without_certificate_or_token(stranger, path):
    answer = stranger.get(path)
    assert answer.status == 303
    assert answer.headers["Location"].startswith("/login?next=%2F")
    assert stranger.get(path, Accept="text/event-stream").status == 401


def test_a_guessed_token_opens_nothing(stranger):
    assert stranger.get("/", Authorization="Bearer accord-web-guess").status == 401


def test_a_viewer_sees_every_page(coordinator, viewer):
    for path in (*PAGES, adapter_page(coordinator)):
        answer = viewer.get(path)
        assert answer.status == 200, (path, answer.text)
        assert answer.page.count("h1") == 1, path
        # A page stays small, however many take part.
        assert len(answer.body) < MOST_BYTES
        assert answer.page.count("tr") < 120


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.SECURITY_OFFICER])
def test_so_does_who_may_do_more(coordinator, role):
    assert reader(coordinator, f"a-{role.value}", role).get("/participants").status == 200


def test_a_participants_certificate_opens_nothing(coordinator, tmp_path, stranger):
    from cryptography.hazmat.primitives.asymmetric import ec

    from common.clock import SystemClock
    from common.identifiers import ParticipantId
    from coordinator.pki import key_pem

    key = ec.generate_private_key(ec.SECP256R1())
    issued = coordinator.authority.issue_participant(
        key.public_key(), ParticipantId("hospital-0001"), now=SystemClock().now()
    )
    (tmp_path / "chain.pem").write_text(issued.chain_pem)
    (tmp_path / "key.pem").write_bytes(key_pem(key))
    site = replace(stranger, certificate=tmp_path / "chain.pem", key=tmp_path / "key.pem")
    assert {site.get(path).status for path in PAGES} == {403}


def test_a_revoked_certificate_is_refused_at_the_next_request_and_its_stream_ends(coordinator):
    mallory = reader(coordinator, "mallory", Role.OPERATOR)
    with mallory.stream("/runs") as stream:
        pages = stream.pages()
        assert "<h1>Runs</h1>" in next(pages)
        file = coordinator.operator_folder("mallory") / OPERATOR_CERTIFICATE
        certificate = parse_certificates(file.read_bytes(), what="operator")[0]
        PkiFolder(coordinator.config.pki_folder).revoke_serial(serial_text(certificate))
        assert list(pages) == []
    answer = mallory.get("/runs")
    assert answer.status == 403
    assert "was revoked" in answer.text


def test_a_token_opens_the_page_as_a_bearer_and_by_the_form(coordinator, stranger):
    _, text = token(coordinator, "the bank's manager")
    assert replace(stranger, token=text).get("/runs").status == 200
    entered = stranger.post("/login", {"token": text, "next": "/runs?show=open"})
    assert (entered.status, entered.headers["Location"]) == (303, "/runs?show=open")
    cookie = entered.headers["Set-Cookie"]
    assert cookie.startswith(f"__Host-accord-web={text}; ")
    assert {"HttpOnly", "Secure", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    seconds = [part.removeprefix("Max-Age=") for part in cookie.split("; ") if part.startswith("Max-Age=")]
    assert [0 < int(number) <= 600 for number in seconds] == [True]
    page = stranger.get("/runs", Cookie=cookie.split(";")[0])
    assert page.status == 200
    assert "the bank's manager" in page.page.text
    assert text not in page.text
    left = stranger.post("/logout", {}, Cookie=cookie.split(";")[0])
    assert left.status == 303
    assert re.search(r"__Host-accord-web=\"?\"?;", left.headers["Set-Cookie"])


def test_a_revoked_token_is_refused_at_the_next_request_and_its_stream_ends(coordinator, stranger):
    name, text = token(coordinator)
    holder = replace(stranger, token=text)
    with holder.stream("/runs") as stream:
        pages = stream.pages()
        next(pages)
        coordinator.admin().RevokeWebToken(pb.RevokeWebTokenRequest(name=name))
        assert list(pages) == []
    answer = holder.get("/runs")
    assert answer.status == 401
    assert "was revoked" in answer.text


def test_a_token_that_has_ended_opens_nothing(coordinator, stranger):
    _, text = token(coordinator)
    with coordinator.store.write() as writer:
        row = web_tokens.admit(writer, text, now=datetime.now(UTC))
        ended = replace(row, name="ended", secret_sha256="0" * 64, expires_at=datetime.now(UTC) - timedelta(seconds=1))
        past, secret = web_tokens.issue(
            "past", creator="a", life=timedelta(0), now=ended.expires_at, random=lambda size: bytes(size)
        )
        writer.add_web_token(past)
    answer = stranger.post("/login", {"token": secret})
    assert answer.status == 401
    assert "has ended" in answer.page.text


def test_what_was_entered_at_the_door_is_not_repeated(stranger):
    answer = stranger.post("/login", {"token": "my-own-password-1"})
    assert answer.status == 401
    assert "my-own-password-1" not in answer.text
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"}])
def test_a_form_of_another_site_is_refused(coordinator, stranger, headers):
    _, text = token(coordinator)
    assert stranger.post("/login", {"token": text}, **headers).status == 403
    assert stranger.post("/logout", {}, **headers).status == 403


@pytest.mark.parametrize(
    "address", ["//evil.example/", "https://evil.example", "/\\evil.example", "javascript:x", "/\r\nA: b"]
)
def test_nobody_is_sent_elsewhere_from_the_door(coordinator, stranger, address):
    _, text = token(coordinator)
    assert stranger.post("/login", {"token": text, "next": address}).headers["Location"] == "/"


def test_a_link_from_elsewhere_asks_again_from_here_so_that_the_cookie_comes_along(stranger):
    """Browsers keep a strict cookie back on a link from a chat; a request from our own page has it."""
    answer = stranger.get("/runs", Sec_Fetch_Site="cross-site")
    assert answer.status == 200
    assert ("meta", {"http-equiv": "refresh", "content": "0"}) in answer.page.elements


# --- what every answer carries ----------------------------------------------------------------------------------------


def test_every_answer_carries_the_rules_for_browsers(viewer, stranger):
    style = next(
        values["href"]
        for tag, values in viewer.get("/").page.elements
        if tag == "link" and "stylesheet" in values["rel"]
    )
    answers = [
        *(viewer.get(path) for path in (*PAGES, "/nowhere", "/runs/UPPER", "/participants/none", style)),
        viewer.get("/", method="POST"),
        viewer.get("/", method="HEAD"),
        stranger.get("/"),
        stranger.get("/login"),
        stranger.post("/login", {"token": ""}, Origin="https://evil.example"),
    ]
    for answer in answers:
        assert HEADERS.items() <= answer.headers.items()
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert {answer.headers["Cache-Control"] for answer in answers} == {
        "no-store",
        "public, max-age=31536000, immutable",
    }
    assert all("aiohttp" not in str(answer.headers) for answer in answers)


def test_nothing_is_asked_of_anybody_else_and_nothing_runs_inline(viewer):
    for path in PAGES:
        for tag, values in viewer.get(path).page.elements:
            for name, value in values.items():
                assert not name.startswith("on"), (path, tag, name)
                assert name != "style", (path, tag)
                if name in ("href", "src", "action"):
                    assert value.startswith(("/", "#")), (path, tag, value)
                    assert not value.startswith("//"), (path, tag, value)
            assert tag not in ("iframe", "object", "embed", "style"), path
            assert tag != "script" or values["src"].startswith("/static/"), path


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nowhere", 404),
        ("/runs/none", 404),
        (f"/runs/{RUN}/rounds/999", 404),
        (f"/runs/{RUN}/rounds/x", 404),
        (f"/runs/{RUN}/adapters/{'0' * 64}", 404),
        (f"/runs/{RUN}/adapters/short", 400),
        ("/participants/none", 404),
        ("/participants/UPPER", 400),
        ("/participants?page=x", 400),
        ("/participants?show=x", 400),
        (f"/participants?q={'x' * 300}", 400),
        ("/audit?from=x", 400),
        ("/static/0/page.css", 404),
        ("/static/0/..%2fsite.py", 404),
        ("/static/../site.py", 404),
    ],
)
def test_what_is_not_there_or_not_well_asked_for_says_so(viewer, path, status):
    answer = viewer.get(path)
    assert answer.status == status
    assert answer.page.count("h1") == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_a_page_can_only_be_read(viewer, method):
    assert viewer.get("/runs", method=method).status == 405


def test_a_page_that_fails_is_only_that(coordinator, viewer, monkeypatch):
    async def GetFederation(*_: object) -> pb.GetFederationResponse:
        raise RuntimeError("the text of an exception")

    monkeypatch.setattr(AdminServicer, "GetFederation", GetFederation)
    answer = viewer.get("/")
    assert answer.status == 500
    assert "exception" not in answer.text
    with viewer.stream("/") as stream:
        assert stream.answer.status == 500
    monkeypatch.undo()
    assert viewer.get("/").status == 200
    assert coordinator.admin().GetFederation(pb.GetFederationRequest()).federation == "lab"


# --- what the pages show ----------------------------------------------------------------------------------------------


def test_the_overview_says_what_is_wrong_who_it_is_and_what_to_do(viewer):
    text = viewer.get("/").page.text
    assert "Something wants a look" in text
    assert f"Run {RUN} goes on without 20" in text
    assert "hospital-0009, hospital-0059, hospital-0109 and 17 more: no record is left (DATA_INVALID)" in text
    assert "10 participants: certificates are not being renewed" in text
    assert "accord-participant check" in text
    assert "60 of 100 rounds" in text


def test_a_round_shows_who_is_out_and_why_and_finds_one_by_name(viewer):
    path = f"/runs/{RUN}/rounds/{OPEN_ROUND}"
    out = viewer.get(f"{path}?show=out").page.text
    assert "DATA_INVALID 20" in out
    found = viewer.get(f"{path}?q=hospital-0009").page
    assert found.count("tr") == 2
    assert "no record is left (DATA_INVALID)" in found.text
    assert "Nobody here fits" in viewer.get(f"{path}?q=zzz").page.text


def test_curves_are_drawn_by_domain_and_stand_in_a_table_as_well(viewer):
    page = viewer.get(f"/runs/{RUN}").page
    assert page.count("svg") >= 2
    names = ["all", *sorted(DOMAINS)]
    drawn = [values["class"] for tag, values in page.elements if tag == "g"]
    assert drawn == [f"s{number}" for number in range(8)]
    assert "3 more domains are in the table below" in page.text
    assert all(name in page.text for name in names)


def test_an_adapter_shows_its_manifest_and_its_signature(coordinator, viewer):
    with coordinator.store.read() as reader:
        adapter = reader.adapter(reader.run(RUN).accepted_adapter)
    text = viewer.get(adapter_page(coordinator)).page.text
    assert adapter.manifest_signature.hex() in text
    assert json.loads(adapter.manifest)["plan_digest"] in text


def test_the_audit_log_goes_back_to_its_first_line_and_its_chain_can_be_verified(coordinator, viewer):
    path, seen = "/audit", []
    while path:
        page = viewer.get(path).page
        seen += [
            values["title"] for tag, values in page.elements if values.get("title", "").startswith("chain digest ")
        ]
        path = next((values["href"] for tag, values in page.elements if values.get("rel") == "next"), "")
    with coordinator.store.read() as reader:
        newest = [f"chain digest {event.chain_digest}" for event in reader.audit_events(newest_first=True).rows]
    assert len(newest) > 50, "more than a page"
    assert seen[-50:] == newest[-50:]
    assert len(seen) == len(set(seen))
    verified = viewer.get("/audit?verify=1").page
    assert "events is intact" in verified.text
    assert ("html", {"lang": "en", "data-follow": "no"}) in verified.elements, "it is not computed again and again"
    assert viewer.get("/audit?verify=1", Accept="text/event-stream").status == 400


# --- a thousand participants ------------------------------------------------------------------------------------------


def test_every_participant_is_on_some_page_and_on_one_alone(viewer):
    path, seen = "/participants", []
    while path:
        page = viewer.get(path).page
        seen += [link for link in page.links() if re.fullmatch(r"/participants/[a-z0-9-]+", link)]
        path = next((values["href"] for tag, values in page.elements if values.get("rel") == "next"), "")
    assert len(seen) == len(set(seen)) == 1003


# --- live -------------------------------------------------------------------------------------------------------------


def test_a_stream_sends_the_page_when_it_changes(coordinator, viewer):
    path = f"/runs/{RUN}/rounds/{OPEN_ROUND}?q=hospital-0001"
    with viewer.stream(path) as stream:
        assert stream.answer.headers["Content-Type"] == "text/event-stream"
        pages = stream.pages()
        assert "out of memory" not in next(pages)
        with coordinator.store.write() as writer:
            known = writer.participation(RUN, OPEN_ROUND, "hospital-0001")
            writer.put_participation(
                replace(known, state=ParticipationState.FAILED, reason="TRAINING_FAILED", message="out of memory")
            )
        assert "out of memory (TRAINING_FAILED)" in next(page for page in pages if "out of memory" in page)


# --- hostile text -----------------------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>`</main>"


def test_whatever_participants_say_is_shown_as_text(coordinator, viewer):
    with coordinator.store.write() as writer:
        known = writer.participant("hospital-0002")
        writer.put_participant(
            replace(known, state=ParticipantState.REVOKED, software_version=HOSTILE, revoke_reason=HOSTILE)
        )
        other = writer.participant("hospital-0004")
        writer.put_participant(replace(other, software_version=HOSTILE))
        entry = writer.participation(RUN, OPEN_ROUND, "hospital-0002")
        writer.put_participation(
            replace(entry, state=ParticipationState.FAILED, reason=HOSTILE, message=HOSTILE, activity=HOSTILE)
        )
        entry = writer.participation(RUN, OPEN_ROUND, "hospital-0003")
        writer.put_participation(replace(entry, state=ParticipationState.PRESENT, activity=HOSTILE))
        writer.put_run_member(RunMember(RUN, "hospital-0002", False, entry.updated_at, HOSTILE, HOSTILE))
        ended = writer.round(RUN, ROUNDS)
        writer.update_round(
            replace(
                ended,
                reason=HOSTILE,
                message=HOSTILE,
                metrics=(*ended.metrics, (f"heldout_loss/{HOSTILE}", 0.5)),
                version=ended.version + 1,
            )
        )
        for subject in ("participants/hospital-0002", f"runs/{RUN}/rounds/{OPEN_ROUND}"):
            details = json.dumps({HOSTILE: HOSTILE, "reason": HOSTILE, "list": [HOSTILE] * 9})
            writer.append_audit(time=datetime.now(UTC), actor=HOSTILE, action=HOSTILE, subject=subject, details=details)
        event: AuditEvent = writer.append_audit(
            time=datetime.now(UTC), actor="a", action="b", subject=HOSTILE, details=f"{HOSTILE} no JSON"
        )
    _, text = token(coordinator, HOSTILE[:80])
    holder = replace(viewer, certificate=None, key=None, token=text)
    shown = 0
    for path in (
        *PAGES,
        f"/runs/{RUN}/rounds/{ROUNDS}",
        "/participants/hospital-0002",
        "/participants?show=revoked&q=hospital-0002",
        f"/runs/{RUN}?members=declined",
        f"/runs/{RUN}/rounds/{OPEN_ROUND}?q=%3Cscript%3E%22%27",
        f"/runs/{RUN}/rounds/{OPEN_ROUND}?show=out",
        f"/runs/{RUN}/rounds/{OPEN_ROUND}?show=waiting&q=hospital-0003",
        "/audit?subject=%3Cscript%3E%22%27&actor=%3Cimg%3E",
        "/participants?q=%22%3E%3Cscript%3E",
    ):
        answer = holder.get(path)
        assert answer.status == 200, path
        page = answer.page
        assert page.count("img") == 0, path
        assert page.count("script") == 2, path
        assert page.count("main") == 1, path
        assert not [values for _, values in page.elements if any(name.startswith("on") for name in values)], path
        shown += "alert(1)" in page.text
    assert shown >= 8, "the text itself is there to be read"
    assert event.sequence > 0


def test_nothing_that_a_participant_says_is_an_event_of_a_pages_stream(coordinator, viewer):
    """Lines of a stream end at a carriage return, too."""
    with coordinator.store.write() as writer:
        entry = writer.participation(RUN, OPEN_ROUND, "hospital-0005")
        message = "x\r\revent: page\rdata: Everything is in order\r\r"
        writer.put_participation(replace(entry, state=ParticipationState.FAILED, reason="OTHER", message=message))
    with viewer.stream(f"/runs/{RUN}/rounds/{OPEN_ROUND}?q=hospital-0005") as stream:
        page = next(stream.pages())
    assert "Everything is in order" in page
    assert "\r" not in page


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_no_page_holds_a_secret_nor_one_sites_figures(tmp_path):
    """A round with a dropout, so that both kinds of share are opened."""
    with spying() as spy, federation_in(tmp_path, limits=WEB) as federation:
        federation.add_sites(4)
        federation.create_run(rounds=1)
        assert federation.play_with_a_dropout(federation.sites["site-2"])["state"] == "succeeded"
        invitation = federation.admin.create_join_token("newcomer", ttl_seconds=3600)
        made = federation.admin.create_web_token("wallboard", ttl_seconds=3600)
        assert federation.addresses is not None
        stranger = Reader(
            federation.addresses.web, PkiFolder(federation.config.pki_folder).authority_certificate, token=made["token"]
        )
        waiting, seen = ["/", "/audit?verify=1"], {}
        while waiting:
            path = waiting.pop()
            answer: Answer = stranger.get(path)
            assert answer.status == 200, path
            seen[path] = answer.text
            waiting += [link for link in answer.page.links() - seen.keys() - set(waiting) if "#" not in link]
        told = "\n".join(seen.values())
    assert {"/runs/run/rounds/1", "/participants/site-2", "/runs/run/adapters"} <= seen.keys()
    assert len(spy.secrets) > 100
    assert spy.found_in(told) == []
    assert made["token"] not in told
    assert invitation["token"] not in told
    assert "PRIVATE KEY" not in told
    assert "web token created" in told, "the audit log was among them"
    # The made-up sites' numbers of records, 400 to 700: only their sum is known.
    assert not re.search(r">\s*(400|500|600|700)\s*<", told)
