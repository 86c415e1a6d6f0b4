--
-- PostgreSQL database dump
--


-- Dumped from database version 15.18 (Debian 15.18-0+deb12u1)
-- Dumped by pg_dump version 15.18 (Debian 15.18-0+deb12u1)

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: adapters; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.adapters (
    digest text NOT NULL COLLATE pg_catalog."C",
    run text NOT NULL COLLATE pg_catalog."C",
    round bigint NOT NULL,
    state text NOT NULL COLLATE pg_catalog."C",
    size_bytes bigint NOT NULL,
    parent text COLLATE pg_catalog."C",
    manifest bytea NOT NULL,
    manifest_signature bytea NOT NULL,
    created_at timestamp with time zone NOT NULL,
    heldout_loss double precision
);


--
-- Name: COLUMN adapters.digest; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.adapters.digest IS 'SHA-256 of adapter_model.safetensors, hex';


--
-- Name: COLUMN adapters.run; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.adapters.run IS 'runs.name';


--
-- Name: COLUMN adapters.round; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.adapters.round IS 'round that published it, 0 for the initial adapter';


--
-- Name: COLUMN adapters.state; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.adapters.state IS 'candidate, accepted or set_aside';


--
-- Name: COLUMN adapters.size_bytes; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.adapters.size_bytes IS 'bytes of adapter_model.safetensors';


--
-- Name: COLUMN adapters.parent; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.adapters.parent IS 'digest of the adapter before it';


--
-- Name: COLUMN adapters.manifest; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.adapters.manifest IS 'the signed manifest, byte for byte';


--
-- Name: COLUMN adapters.manifest_signature; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.adapters.manifest_signature IS 'Ed25519 signature of manifest by the coordinator''s signing key';


--
-- Name: COLUMN adapters.created_at; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.adapters.created_at IS 'UTC';


--
-- Name: COLUMN adapters.heldout_loss; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.adapters.heldout_loss IS 'mean held-out loss over the participants, once measured';


--
-- Name: alembic_version; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);


--
-- Name: answers; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.answers (
    caller text NOT NULL COLLATE pg_catalog."C",
    request_id text NOT NULL COLLATE pg_catalog."C",
    answer bytea NOT NULL,
    answered_at timestamp with time zone NOT NULL
);


--
-- Name: COLUMN answers.caller; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.answers.caller IS 'who asked';


--
-- Name: COLUMN answers.request_id; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.answers.request_id IS 'the caller''s own id of the request';


--
-- Name: COLUMN answers.answer; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.answers.answer IS 'what it was answered with; a repeat gets the same';


--
-- Name: COLUMN answers.answered_at; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.answers.answered_at IS 'UTC';


--
-- Name: audit_events; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.audit_events (
    sequence bigint NOT NULL,
    "time" timestamp with time zone NOT NULL,
    actor text NOT NULL COLLATE pg_catalog."C",
    action text NOT NULL COLLATE pg_catalog."C",
    subject text NOT NULL COLLATE pg_catalog."C",
    details text NOT NULL COLLATE pg_catalog."C",
    chain_digest text NOT NULL COLLATE pg_catalog."C"
);


--
-- Name: COLUMN audit_events.sequence; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.audit_events.sequence IS '1, 2, ... without gaps';


--
-- Name: COLUMN audit_events."time"; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.audit_events."time" IS 'UTC';


--
-- Name: COLUMN audit_events.actor; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.audit_events.actor IS 'who did it: an operator, a participant or the coordinator';


--
-- Name: COLUMN audit_events.action; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.audit_events.action IS 'what was done';


--
-- Name: COLUMN audit_events.subject; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.audit_events.subject IS 'to what it was done';


--
-- Name: COLUMN audit_events.details; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.audit_events.details IS 'canonical JSON';


--
-- Name: COLUMN audit_events.chain_digest; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.audit_events.chain_digest IS 'SHA-256 over the digest before and this line, hex (coordinator/store/audit.py)';


--
-- Name: audit_head; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.audit_head (
    id bigint NOT NULL,
    sequence bigint NOT NULL,
    chain_digest text NOT NULL COLLATE pg_catalog."C"
);


--
-- Name: COLUMN audit_head.id; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.audit_head.id IS 'always 1';


--
-- Name: COLUMN audit_head.sequence; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.audit_head.sequence IS 'audit_events.sequence of the last event';


--
-- Name: COLUMN audit_head.chain_digest; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.audit_head.chain_digest IS 'audit_events.chain_digest of the last event';


--
-- Name: certificates; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.certificates (
    serial text NOT NULL COLLATE pg_catalog."C",
    participant text NOT NULL COLLATE pg_catalog."C",
    identity_key_sha256 text NOT NULL COLLATE pg_catalog."C",
    chain text NOT NULL COLLATE pg_catalog."C",
    issued_at timestamp with time zone NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    revoked_at timestamp with time zone
);


--
-- Name: COLUMN certificates.serial; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.certificates.serial IS 'serial number';


--
-- Name: COLUMN certificates.participant; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.certificates.participant IS 'participants.name';


--
-- Name: COLUMN certificates.identity_key_sha256; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.certificates.identity_key_sha256 IS 'SHA-256 of the identity key, hex';


--
-- Name: COLUMN certificates.chain; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.certificates.chain IS 'PEM, leaf first';


--
-- Name: COLUMN certificates.issued_at; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.certificates.issued_at IS 'UTC';


--
-- Name: COLUMN certificates.expires_at; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.certificates.expires_at IS 'UTC';


--
-- Name: COLUMN certificates.revoked_at; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.certificates.revoked_at IS 'UTC; NULL unless revoked';


--
-- Name: charters; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.charters (
    digest text NOT NULL COLLATE pg_catalog."C",
    charter bytea NOT NULL,
    publication bigint NOT NULL,
    published_at timestamp with time zone NOT NULL
);


--
-- Name: COLUMN charters.digest; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.charters.digest IS 'SHA-256 of the charter, hex';


--
-- Name: COLUMN charters.charter; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.charters.charter IS 'the charter, byte for byte';


--
-- Name: COLUMN charters.publication; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.charters.publication IS 'counts publications; the highest is in force';


--
-- Name: COLUMN charters.published_at; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.charters.published_at IS 'UTC';


--
-- Name: join_tokens; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.join_tokens (
    name text NOT NULL COLLATE pg_catalog."C",
    participant text NOT NULL COLLATE pg_catalog."C",
    secret_sha256 text NOT NULL COLLATE pg_catalog."C",
    created_at timestamp with time zone NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    used_at timestamp with time zone,
    used_certificate text COLLATE pg_catalog."C",
    revoked_at timestamp with time zone
);


--
-- Name: COLUMN join_tokens.name; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.join_tokens.name IS 'id of the token';


--
-- Name: COLUMN join_tokens.participant; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.join_tokens.participant IS 'the only name that it may enrol';


--
-- Name: COLUMN join_tokens.secret_sha256; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.join_tokens.secret_sha256 IS 'SHA-256 of the secret, hex; the secret itself is nowhere';


--
-- Name: COLUMN join_tokens.created_at; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.join_tokens.created_at IS 'UTC';


--
-- Name: COLUMN join_tokens.expires_at; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.join_tokens.expires_at IS 'UTC';


--
-- Name: COLUMN join_tokens.used_at; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.join_tokens.used_at IS 'UTC; NULL unless used';


--
-- Name: COLUMN join_tokens.used_certificate; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.join_tokens.used_certificate IS 'serial number of the certificate that it was used for';


--
-- Name: COLUMN join_tokens.revoked_at; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.join_tokens.revoked_at IS 'UTC; NULL unless revoked';


--
-- Name: key_epochs; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.key_epochs (
    run text NOT NULL COLLATE pg_catalog."C",
    number bigint NOT NULL,
    state text NOT NULL COLLATE pg_catalog."C",
    first_round bigint NOT NULL,
    rounds bigint NOT NULL,
    phase_started_at timestamp with time zone NOT NULL,
    deadline timestamp with time zone NOT NULL,
    members text NOT NULL COLLATE pg_catalog."C",
    usable text NOT NULL COLLATE pg_catalog."C",
    reason text NOT NULL COLLATE pg_catalog."C",
    message text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL
);


--
-- Name: COLUMN key_epochs.run; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.key_epochs.run IS 'runs.name';


--
-- Name: COLUMN key_epochs.number; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.key_epochs.number IS '1, 2, ... within the run';


--
-- Name: COLUMN key_epochs.state; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.key_epochs.state IS 'advertising, sharing, confirming, ready, closed or failed';


--
-- Name: COLUMN key_epochs.first_round; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.key_epochs.first_round IS 'first round that these keys mask';


--
-- Name: COLUMN key_epochs.rounds; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.key_epochs.rounds IS 'how many rounds they mask';


--
-- Name: COLUMN key_epochs.phase_started_at; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.key_epochs.phase_started_at IS 'UTC; when the present state began';


--
-- Name: COLUMN key_epochs.deadline; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.key_epochs.deadline IS 'UTC; when the present phase''s window ends';


--
-- Name: COLUMN key_epochs.members; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.key_epochs.members IS 'JSON array: participants whose keys are on the roster';


--
-- Name: COLUMN key_epochs.usable; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.key_epochs.usable IS 'JSON array: members whose shares all arrived';


--
-- Name: COLUMN key_epochs.reason; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.key_epochs.reason IS 'stable reason of a failure, else empty';


--
-- Name: COLUMN key_epochs.message; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.key_epochs.message IS 'the same for a person';


--
-- Name: COLUMN key_epochs.version; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.key_epochs.version IS 'counts the changes of this row';


--
-- Name: leases; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.leases (
    name text NOT NULL COLLATE pg_catalog."C",
    holder text NOT NULL COLLATE pg_catalog."C",
    until timestamp with time zone NOT NULL
);


--
-- Name: COLUMN leases.name; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.leases.name IS 'the piece of work';


--
-- Name: COLUMN leases.holder; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.leases.holder IS 'the process that may do it';


--
-- Name: COLUMN leases.until; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.leases.until IS 'UTC; after this anybody may take it';


--
-- Name: participants; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.participants (
    name text NOT NULL COLLATE pg_catalog."C",
    state text NOT NULL COLLATE pg_catalog."C",
    enrolled_at timestamp with time zone NOT NULL,
    identity_key_sha256 text NOT NULL COLLATE pg_catalog."C",
    certificate_serial text NOT NULL COLLATE pg_catalog."C",
    certificate_expires_at timestamp with time zone NOT NULL,
    last_seen_at timestamp with time zone,
    software_version text NOT NULL COLLATE pg_catalog."C",
    revoke_reason text NOT NULL COLLATE pg_catalog."C"
);


--
-- Name: COLUMN participants.name; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.participants.name IS 'id of the participant, unique in the federation';


--
-- Name: COLUMN participants.state; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.participants.state IS 'active or revoked';


--
-- Name: COLUMN participants.enrolled_at; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.participants.enrolled_at IS 'UTC';


--
-- Name: COLUMN participants.identity_key_sha256; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.participants.identity_key_sha256 IS 'SHA-256 of the identity key, hex';


--
-- Name: COLUMN participants.certificate_serial; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.participants.certificate_serial IS 'serial number of its newest certificate';


--
-- Name: COLUMN participants.certificate_expires_at; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.participants.certificate_expires_at IS 'UTC; end of its newest certificate';


--
-- Name: COLUMN participants.last_seen_at; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.participants.last_seen_at IS 'UTC; its last call';


--
-- Name: COLUMN participants.software_version; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.participants.software_version IS 'what it last said it runs';


--
-- Name: COLUMN participants.revoke_reason; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.participants.revoke_reason IS 'the operator''s words, empty while active';


--
-- Name: participations; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.participations (
    run text NOT NULL COLLATE pg_catalog."C",
    round bigint NOT NULL,
    participant text NOT NULL COLLATE pg_catalog."C",
    state text NOT NULL COLLATE pg_catalog."C",
    updated_at timestamp with time zone NOT NULL,
    reason text NOT NULL COLLATE pg_catalog."C",
    message text NOT NULL COLLATE pg_catalog."C",
    activity text NOT NULL COLLATE pg_catalog."C",
    progress_done bigint NOT NULL,
    progress_total bigint NOT NULL,
    uploaded_bytes bigint NOT NULL,
    upload_bytes bigint NOT NULL
);


--
-- Name: COLUMN participations.run; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.participations.run IS 'runs.name';


--
-- Name: COLUMN participations.round; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.participations.round IS 'rounds.number';


--
-- Name: COLUMN participations.participant; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.participations.participant IS 'name of the participant';


--
-- Name: COLUMN participations.state; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.participations.state IS 'present, prepared, uploaded, committed, revealed, failed or dropped';


--
-- Name: COLUMN participations.updated_at; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.participations.updated_at IS 'UTC';


--
-- Name: COLUMN participations.reason; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.participations.reason IS 'why it is out, else empty';


--
-- Name: COLUMN participations.message; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.participations.message IS 'the same for a person';


--
-- Name: COLUMN participations.activity; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.participations.activity IS 'what the participant says it is doing';


--
-- Name: COLUMN participations.progress_done; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.participations.progress_done IS 'of progress_total, in the participant''s own unit';


--
-- Name: COLUMN participations.progress_total; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.participations.progress_total IS '0 if unknown';


--
-- Name: COLUMN participations.uploaded_bytes; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.participations.uploaded_bytes IS 'bytes of the masked update on durable storage';


--
-- Name: COLUMN participations.upload_bytes; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.participations.upload_bytes IS 'bytes of the whole masked update, 0 before it is declared';


--
-- Name: protocol_messages; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.protocol_messages (
    run text NOT NULL COLLATE pg_catalog."C",
    kind text NOT NULL COLLATE pg_catalog."C",
    number bigint NOT NULL,
    sender text NOT NULL COLLATE pg_catalog."C",
    body bytea NOT NULL
);


--
-- Name: COLUMN protocol_messages.run; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.protocol_messages.run IS 'runs.name';


--
-- Name: COLUMN protocol_messages.kind; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.protocol_messages.kind IS 'roster, advertisement, deposit, confirmation (of an epoch), commit, reveal (of a round), and kept as proof of a lie in a round: second_receipt, second_commit, false_reveal';


--
-- Name: COLUMN protocol_messages.number; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.protocol_messages.number IS 'key_epochs.number or rounds.number, by kind';


--
-- Name: COLUMN protocol_messages.sender; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.protocol_messages.sender IS 'name of the participant';


--
-- Name: COLUMN protocol_messages.body; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.protocol_messages.body IS 'the message, byte for byte; of a deposit its SHA-256';


--
-- Name: rounds; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.rounds (
    run text NOT NULL COLLATE pg_catalog."C",
    number bigint NOT NULL,
    kind text NOT NULL COLLATE pg_catalog."C",
    state text NOT NULL COLLATE pg_catalog."C",
    base_adapter text NOT NULL COLLATE pg_catalog."C",
    instruction_set text NOT NULL COLLATE pg_catalog."C",
    created_at timestamp with time zone NOT NULL,
    phase_started_at timestamp with time zone NOT NULL,
    deadline timestamp with time zone NOT NULL,
    epoch bigint NOT NULL,
    cohort text NOT NULL COLLATE pg_catalog."C",
    survivors text NOT NULL COLLATE pg_catalog."C",
    start bytea NOT NULL,
    result_adapter text COLLATE pg_catalog."C",
    metrics text NOT NULL COLLATE pg_catalog."C",
    closed_groups text NOT NULL COLLATE pg_catalog."C",
    reason text NOT NULL COLLATE pg_catalog."C",
    message text NOT NULL COLLATE pg_catalog."C",
    ended_at timestamp with time zone,
    version bigint NOT NULL
);


--
-- Name: COLUMN rounds.run; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.rounds.run IS 'runs.name';


--
-- Name: COLUMN rounds.number; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.rounds.number IS '1, 2, ... within the run';


--
-- Name: COLUMN rounds.kind; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.rounds.kind IS 'train, or evaluate (metrics alone)';


--
-- Name: COLUMN rounds.state; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.rounds.state IS 'forming, training, collecting, unmasking, aggregating, succeeded, failed or cancelled';


--
-- Name: COLUMN rounds.base_adapter; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.rounds.base_adapter IS 'digest of the adapter from which participants train';


--
-- Name: COLUMN rounds.instruction_set; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.rounds.instruction_set IS 'templates and domain weights of this round';


--
-- Name: COLUMN rounds.created_at; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.rounds.created_at IS 'UTC';


--
-- Name: COLUMN rounds.phase_started_at; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.rounds.phase_started_at IS 'UTC; when the present state began';


--
-- Name: COLUMN rounds.deadline; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.rounds.deadline IS 'UTC; when the present phase''s window ends';


--
-- Name: COLUMN rounds.epoch; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.rounds.epoch IS 'key epoch whose keys mask this round, 0 before one is chosen';


--
-- Name: COLUMN rounds.cohort; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.rounds.cohort IS 'JSON array: participants with an update ready when training closed';


--
-- Name: COLUMN rounds.survivors; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.rounds.survivors IS 'JSON array: participants whose masked update is in the sum; bound once';


--
-- Name: COLUMN rounds.start; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.rounds.start IS 'signed start message of the masked part';


--
-- Name: COLUMN rounds.result_adapter; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.rounds.result_adapter IS 'digest of the adapter that this round published';


--
-- Name: COLUMN rounds.metrics; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.rounds.metrics IS 'JSON array of [name, figure] over the survivors';


--
-- Name: COLUMN rounds.closed_groups; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.rounds.closed_groups IS 'JSON array of [metric group that is not summed, its contributors in the cohort, what it takes]';


--
-- Name: COLUMN rounds.reason; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.rounds.reason IS 'stable reason of a failure, else empty';


--
-- Name: COLUMN rounds.message; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.rounds.message IS 'the same for a person';


--
-- Name: COLUMN rounds.ended_at; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.rounds.ended_at IS 'UTC; NULL while the round is open';


--
-- Name: COLUMN rounds.version; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.rounds.version IS 'counts the changes of this row';


--
-- Name: run_members; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.run_members (
    run text NOT NULL COLLATE pg_catalog."C",
    participant text NOT NULL COLLATE pg_catalog."C",
    joined boolean NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    reason text NOT NULL COLLATE pg_catalog."C",
    message text NOT NULL COLLATE pg_catalog."C"
);


--
-- Name: COLUMN run_members.run; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.run_members.run IS 'runs.name';


--
-- Name: COLUMN run_members.participant; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.run_members.participant IS 'name of the participant';


--
-- Name: COLUMN run_members.joined; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.run_members.joined IS 'true: joined; false: declined';


--
-- Name: COLUMN run_members.updated_at; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.run_members.updated_at IS 'UTC';


--
-- Name: COLUMN run_members.reason; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.run_members.reason IS 'why it declined, else empty';


--
-- Name: COLUMN run_members.message; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.run_members.message IS 'the same for a person';


--
-- Name: runs; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.runs (
    name text NOT NULL COLLATE pg_catalog."C",
    state text NOT NULL COLLATE pg_catalog."C",
    plan bytea NOT NULL,
    plan_digest text NOT NULL COLLATE pg_catalog."C",
    charter_digest text NOT NULL COLLATE pg_catalog."C",
    accepted_adapter text NOT NULL COLLATE pg_catalog."C",
    candidate_adapter text COLLATE pg_catalog."C",
    created_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone,
    latest_round bigint NOT NULL,
    latest_epoch bigint NOT NULL,
    rounds_succeeded bigint NOT NULL,
    failed_in_a_row bigint NOT NULL,
    accepted_loss double precision,
    reason text NOT NULL COLLATE pg_catalog."C",
    message text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL
);


--
-- Name: COLUMN runs.name; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.runs.name IS 'id of the run, unique in the federation';


--
-- Name: COLUMN runs.state; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.runs.state IS 'created, running, paused, succeeded, failed or cancelled';


--
-- Name: COLUMN runs.plan; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.runs.plan IS 'the plan as canonical JSON, byte for byte; never changes';


--
-- Name: COLUMN runs.plan_digest; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.runs.plan_digest IS 'SHA-256 of plan, hex';


--
-- Name: COLUMN runs.charter_digest; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.runs.charter_digest IS 'SHA-256 of the charter under which the run was created, hex';


--
-- Name: COLUMN runs.accepted_adapter; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.runs.accepted_adapter IS 'digest of the last adapter that passed the gate';


--
-- Name: COLUMN runs.candidate_adapter; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.runs.candidate_adapter IS 'digest of an adapter that no round has evaluated yet';


--
-- Name: COLUMN runs.created_at; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.runs.created_at IS 'UTC';


--
-- Name: COLUMN runs.ended_at; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.runs.ended_at IS 'UTC; NULL while the run is open';


--
-- Name: COLUMN runs.latest_round; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.runs.latest_round IS 'number of the newest round, 0 before the first';


--
-- Name: COLUMN runs.latest_epoch; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.runs.latest_epoch IS 'number of the newest key epoch, 0 before the first';


--
-- Name: COLUMN runs.rounds_succeeded; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.runs.rounds_succeeded IS 'rounds that ended well';


--
-- Name: COLUMN runs.failed_in_a_row; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.runs.failed_in_a_row IS 'rounds that failed since the last one that ended well';


--
-- Name: COLUMN runs.accepted_loss; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.runs.accepted_loss IS 'held-out loss of the accepted adapter, once measured';


--
-- Name: COLUMN runs.reason; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.runs.reason IS 'stable reason of a failure or pause, else empty';


--
-- Name: COLUMN runs.message; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.runs.message IS 'the same for a person';


--
-- Name: COLUMN runs.version; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.runs.version IS 'counts the changes of this row';


--
-- Name: share_envelopes; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.share_envelopes (
    run text NOT NULL COLLATE pg_catalog."C",
    epoch bigint NOT NULL,
    holder text NOT NULL COLLATE pg_catalog."C",
    owner text NOT NULL COLLATE pg_catalog."C",
    envelope bytea NOT NULL
);


--
-- Name: COLUMN share_envelopes.run; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.share_envelopes.run IS 'runs.name';


--
-- Name: COLUMN share_envelopes.epoch; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.share_envelopes.epoch IS 'key_epochs.number';


--
-- Name: COLUMN share_envelopes.holder; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.share_envelopes.holder IS 'name of the participant that can open it';


--
-- Name: COLUMN share_envelopes.owner; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.share_envelopes.owner IS 'name of the participant that has sealed and signed it';


--
-- Name: COLUMN share_envelopes.envelope; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.share_envelopes.envelope IS 'the signed envelope, byte for byte';


--
-- Name: uploads; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.uploads (
    run text NOT NULL COLLATE pg_catalog."C",
    round bigint NOT NULL,
    participant text NOT NULL COLLATE pg_catalog."C",
    chunk_count bigint NOT NULL,
    total_bytes bigint NOT NULL,
    chunk_digests bytea NOT NULL,
    durable_chunks bigint NOT NULL,
    is_complete boolean NOT NULL,
    receipt bytea NOT NULL
);


--
-- Name: COLUMN uploads.run; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.uploads.run IS 'runs.name';


--
-- Name: COLUMN uploads.round; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.uploads.round IS 'rounds.number';


--
-- Name: COLUMN uploads.participant; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.uploads.participant IS 'name of the participant';


--
-- Name: COLUMN uploads.chunk_count; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.uploads.chunk_count IS 'chunks of the masked update';


--
-- Name: COLUMN uploads.total_bytes; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.uploads.total_bytes IS 'bytes of the masked update';


--
-- Name: COLUMN uploads.chunk_digests; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.uploads.chunk_digests IS 'SHA-256 of every chunk, one after the other, as the header declared them';


--
-- Name: COLUMN uploads.durable_chunks; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.uploads.durable_chunks IS 'chunks before this one are on durable storage and were acknowledged';


--
-- Name: COLUMN uploads.is_complete; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.uploads.is_complete IS 'all chunks are durable and their digests verified';


--
-- Name: COLUMN uploads.receipt; Type: COMMENT; Schema: public; Owner: -
--

COMMENT ON COLUMN public.uploads.receipt IS 'signed receipt, empty before the upload is complete';


--
-- Data for Name: adapters; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.adapters VALUES ('5555555555555555555555555555555555555555555555555555555555555555', 'run-1', 7, 'set_aside', 2147483648, '3333333333333333333333333333333333333333333333333333333333333333', '\x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedfe0e1e2e3e4e5e6e7e8e9eaebecedeeeff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff00ff7b7d', '\x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f', '2026-03-01 12:30:15.123456+00', 2.5);


--
-- Data for Name: alembic_version; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.alembic_version VALUES ('0001');


--
-- Data for Name: answers; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.answers VALUES ('operators/alice', 'request-1', '\x0001616e73776572', '2026-03-01 12:30:15.123456+00');


--
-- Data for Name: audit_events; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.audit_events VALUES (1, '2026-03-01 12:30:15.123456+00', 'operators/alice', 'did', 'thing 0', '{}', '64ef47fb3dbea504c0de13e39d23f458e1f9073f9f8f782fd0ec23dad1364a80');
INSERT INTO public.audit_events VALUES (2, '2026-03-01 12:30:15.123456+00', 'operators/alice', 'did', 'thing 1', '{}', '235b2aa16f8b74144be3837c28da0e96f6b50c7f1d7006512cdf2ddec734168c');
INSERT INTO public.audit_events VALUES (3, '2026-03-01 12:30:15.123456+00', 'operators/alice', 'did', 'thing 2', '{}', '27e68b61e2fd47ac74379848d34234411498e42e9f451ac0d34333335383f049');


--
-- Data for Name: audit_head; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.audit_head VALUES (1, 3, '27e68b61e2fd47ac74379848d34234411498e42e9f451ac0d34333335383f049');


--
-- Data for Name: certificates; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.certificates VALUES ('77', 'bank', '6666666666666666666666666666666666666666666666666666666666666666', '-----BEGIN
', '2026-03-01 12:30:15.123456+00', '2026-03-01 13:30:15.123456+00', '2026-03-01 13:30:15.123456+00');


--
-- Data for Name: charters; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.charters VALUES ('cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc', '\x7468652063686172746572', 1, '2026-03-01 12:30:15.123456+00');


--
-- Data for Name: join_tokens; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.join_tokens VALUES ('token-1', 'bank', '8888888888888888888888888888888888888888888888888888888888888888', '2026-03-01 12:30:15.123456+00', '2026-03-01 13:30:15.123456+00', '2026-03-01 13:30:15.123456+00', '77', '2026-03-01 13:30:15.123456+00');


--
-- Data for Name: key_epochs; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.key_epochs VALUES ('run-1', 2, 'confirming', 5, 10, '2026-03-01 12:30:15.123456+00', '2026-03-01 13:30:15.123456+00', '["bank","clinic"]', '["clinic"]', 'LATE', 'a ''quote'' "and"
	tab – Ünïcode é é 🙂 \ ;-- % _ ', 4);


--
-- Data for Name: leases; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: participants; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.participants VALUES ('bank', 'active', '2026-03-01 12:30:15.123456+00', '6666666666666666666666666666666666666666666666666666666666666666', '77', '2026-03-01 13:30:15.123456+00', '2026-03-01 13:30:15.123456+00', '0.1.0', 'a ''quote'' "and"
	tab – Ünïcode é é 🙂 \ ;-- % _ ');


--
-- Data for Name: participations; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.participations VALUES ('run-1', 7, 'bank', 'committed', '2026-03-01 12:30:15.123456+00', 'R', 'a ''quote'' "and"
	tab – Ünïcode é é 🙂 \ ;-- % _ ', 'training', 3, 1099511627776, 8589934592, 4611686018427387904);


--
-- Data for Name: protocol_messages; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.protocol_messages VALUES ('run-1', 'deposit', 2, 'bank', '\x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedfe0e1e2e3e4e5e6e7e8e9eaebecedeeeff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff00ff7b7d');


--
-- Data for Name: rounds; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.rounds VALUES ('run-1', 7, 'evaluate', 'collecting', '3333333333333333333333333333333333333333333333333333333333333333', 'set-b', '2026-03-01 12:30:15.123456+00', '2026-03-01 12:30:15.123457+00', '2026-03-01 13:30:15.123456+00', 2, '["bank","clinic","news, room"]', '["bank"]', '\x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedfe0e1e2e3e4e5e6e7e8e9eaebecedeeeff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff00ff7b7d', '5555555555555555555555555555555555555555555555555555555555555555', '[["z_loss",1e-300],["accuracy",0.3333333333333333]]', '[["ner",1,3],["held out, all",0,3]]', 'FAILED', 'a ''quote'' "and"
	tab – Ünïcode é é 🙂 \ ;-- % _ ', '2026-03-01 13:30:15.123456+00', 9);


--
-- Data for Name: run_members; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.run_members VALUES ('run-1', 'bank', false, '2026-03-01 12:30:15.123456+00', 'POLICY_REFUSAL', 'a ''quote'' "and"
	tab – Ünïcode é é 🙂 \ ;-- % _ ');


--
-- Data for Name: runs; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.runs VALUES ('run-1', 'paused', '\x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedfe0e1e2e3e4e5e6e7e8e9eaebecedeeeff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff00ff7b7d', '1111111111111111111111111111111111111111111111111111111111111111', '2222222222222222222222222222222222222222222222222222222222222222', '3333333333333333333333333333333333333333333333333333333333333333', '4444444444444444444444444444444444444444444444444444444444444444', '2026-03-01 12:30:15.123456+00', '2026-03-01 13:30:15.123456+00', 7, 2, 5, 1, 0.30000000000000004, 'QUORUM_MISSED', 'a ''quote'' "and"
	tab – Ünïcode é é 🙂 \ ;-- % _ ', 3);


--
-- Data for Name: share_envelopes; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.share_envelopes VALUES ('run-1', 2, 'clinic', 'bank', '\x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedfe0e1e2e3e4e5e6e7e8e9eaebecedeeeff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff00ff7b7d');


--
-- Data for Name: uploads; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.uploads VALUES ('run-1', 7, 'bank', 8, 34359738368, '\x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedfe0e1e2e3e4e5e6e7e8e9eaebecedeeeff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff00ff7b7d', 3, true, '\x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedfe0e1e2e3e4e5e6e7e8e9eaebecedeeeff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff00ff7b7d');


--
-- Name: alembic_version alembic_version_pkc; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);


--
-- Name: adapters pk_adapters; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.adapters
    ADD CONSTRAINT pk_adapters PRIMARY KEY (digest);


--
-- Name: answers pk_answers; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.answers
    ADD CONSTRAINT pk_answers PRIMARY KEY (caller, request_id);


--
-- Name: audit_events pk_audit_events; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.audit_events
    ADD CONSTRAINT pk_audit_events PRIMARY KEY (sequence);


--
-- Name: audit_head pk_audit_head; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.audit_head
    ADD CONSTRAINT pk_audit_head PRIMARY KEY (id);


--
-- Name: certificates pk_certificates; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.certificates
    ADD CONSTRAINT pk_certificates PRIMARY KEY (serial);


--
-- Name: charters pk_charters; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.charters
    ADD CONSTRAINT pk_charters PRIMARY KEY (digest);


--
-- Name: join_tokens pk_join_tokens; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.join_tokens
    ADD CONSTRAINT pk_join_tokens PRIMARY KEY (name);


--
-- Name: key_epochs pk_key_epochs; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.key_epochs
    ADD CONSTRAINT pk_key_epochs PRIMARY KEY (run, number);


--
-- Name: leases pk_leases; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.leases
    ADD CONSTRAINT pk_leases PRIMARY KEY (name);


--
-- Name: participants pk_participants; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.participants
    ADD CONSTRAINT pk_participants PRIMARY KEY (name);


--
-- Name: participations pk_participations; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.participations
    ADD CONSTRAINT pk_participations PRIMARY KEY (run, round, participant);


--
-- Name: protocol_messages pk_protocol_messages; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.protocol_messages
    ADD CONSTRAINT pk_protocol_messages PRIMARY KEY (run, kind, number, sender);


--
-- Name: rounds pk_rounds; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.rounds
    ADD CONSTRAINT pk_rounds PRIMARY KEY (run, number);


--
-- Name: run_members pk_run_members; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.run_members
    ADD CONSTRAINT pk_run_members PRIMARY KEY (run, participant);


--
-- Name: runs pk_runs; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.runs
    ADD CONSTRAINT pk_runs PRIMARY KEY (name);


--
-- Name: share_envelopes pk_share_envelopes; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.share_envelopes
    ADD CONSTRAINT pk_share_envelopes PRIMARY KEY (run, epoch, holder, owner);


--
-- Name: uploads pk_uploads; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.uploads
    ADD CONSTRAINT pk_uploads PRIMARY KEY (run, round, participant);


--
-- Name: adapters uq_adapters_run_round; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.adapters
    ADD CONSTRAINT uq_adapters_run_round UNIQUE (run, round);


--
-- Name: charters uq_charters_publication; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.charters
    ADD CONSTRAINT uq_charters_publication UNIQUE (publication);


--
-- Name: join_tokens uq_join_tokens_secret_sha256; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.join_tokens
    ADD CONSTRAINT uq_join_tokens_secret_sha256 UNIQUE (secret_sha256);


--
-- Name: ix_certificates_participant; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_certificates_participant ON public.certificates USING btree (participant);


--
-- Name: ix_join_tokens_created_at_name; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_join_tokens_created_at_name ON public.join_tokens USING btree (created_at, name);


--
-- Name: ix_runs_created_at_name; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX ix_runs_created_at_name ON public.runs USING btree (created_at, name);


--
-- Name: adapters fk_adapters_runs; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.adapters
    ADD CONSTRAINT fk_adapters_runs FOREIGN KEY (run) REFERENCES public.runs(name) DEFERRABLE INITIALLY DEFERRED;


--
-- Name: certificates fk_certificates_participants; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.certificates
    ADD CONSTRAINT fk_certificates_participants FOREIGN KEY (participant) REFERENCES public.participants(name) DEFERRABLE INITIALLY DEFERRED;


--
-- Name: key_epochs fk_key_epochs_runs; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.key_epochs
    ADD CONSTRAINT fk_key_epochs_runs FOREIGN KEY (run) REFERENCES public.runs(name) DEFERRABLE INITIALLY DEFERRED;


--
-- Name: participations fk_participations_rounds; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.participations
    ADD CONSTRAINT fk_participations_rounds FOREIGN KEY (run, round) REFERENCES public.rounds(run, number) DEFERRABLE INITIALLY DEFERRED;


--
-- Name: protocol_messages fk_protocol_messages_runs; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.protocol_messages
    ADD CONSTRAINT fk_protocol_messages_runs FOREIGN KEY (run) REFERENCES public.runs(name) DEFERRABLE INITIALLY DEFERRED;


--
-- Name: rounds fk_rounds_runs; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.rounds
    ADD CONSTRAINT fk_rounds_runs FOREIGN KEY (run) REFERENCES public.runs(name) DEFERRABLE INITIALLY DEFERRED;


--
-- Name: run_members fk_run_members_runs; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.run_members
    ADD CONSTRAINT fk_run_members_runs FOREIGN KEY (run) REFERENCES public.runs(name) DEFERRABLE INITIALLY DEFERRED;


--
-- Name: share_envelopes fk_share_envelopes_runs; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.share_envelopes
    ADD CONSTRAINT fk_share_envelopes_runs FOREIGN KEY (run) REFERENCES public.runs(name) DEFERRABLE INITIALLY DEFERRED;


--
-- Name: uploads fk_uploads_rounds; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.uploads
    ADD CONSTRAINT fk_uploads_rounds FOREIGN KEY (run, round) REFERENCES public.rounds(run, number) DEFERRABLE INITIALLY DEFERRED;


--
-- PostgreSQL database dump complete
--


