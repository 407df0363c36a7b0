-- A flujo store in PostgreSQL, version 1. Times are microseconds since 1970 UTC, by the database's clock where they say
-- who lives. Everything lies in one schema, which is called flujo unless you say otherwise.

CREATE TABLE flujo.meta (
    name  text COLLATE "C" PRIMARY KEY,
    value text NOT NULL
);

-- One row a process that executes runs. An id is never used twice.
CREATE SEQUENCE flujo.owner_id AS integer;
CREATE TABLE flujo.owner (
    id         integer PRIMARY KEY,
    host       text NOT NULL,
    pid        integer NOT NULL,
    attached   boolean NOT NULL,  -- it holds the advisory lock (flujo.space(), id) for as long as its session lives
    lease      bigint NOT NULL,   -- microseconds that it is presumed to live after a beat
    started_at bigint NOT NULL,
    beat_at    bigint NOT NULL
);

-- One row a run: written when it is claimed and when its status changes, and by nothing else.
CREATE SEQUENCE flujo.run_key;
CREATE TABLE flujo.run (
    key              bigint PRIMARY KEY,
    run_id           text COLLATE "C" NOT NULL UNIQUE,
    pipeline_id      text COLLATE "C" NOT NULL,
    pipeline_name    text COLLATE "C" NOT NULL,
    pipeline_version text COLLATE "C" NOT NULL,
    total_steps      bigint,
    created_at       bigint NOT NULL,
    status           text COLLATE "C" NOT NULL,
    rev              bigint NOT NULL,
    updated_at       bigint NOT NULL,
    error_message    text COLLATE "C",  -- of the last failure, also while the run is executed again
    due_at           bigint,
    fence            bigint,
    owner            integer,
    claimed_at       bigint,
    claim_rev        bigint NOT NULL,
    crashes          bigint NOT NULL,
    busy             bigint NOT NULL
) WITH (fillfactor = 70);
-- The listings, newest first, and the statistics are answered from these two alone.
CREATE INDEX run_status ON flujo.run (status, updated_at, key) INCLUDE (busy);
CREATE INDEX run_pipeline ON flujo.run (pipeline_id, status, updated_at, key) INCLUDE (busy);
-- What a worker looks for: runs whose time has come, runs that nobody has, and the runs of an owner that died.
CREATE INDEX run_due ON flujo.run (pipeline_name, pipeline_version, due_at)
    WHERE status = 'paused' AND due_at IS NOT NULL;
CREATE INDEX run_free ON flujo.run (pipeline_name, pipeline_version, updated_at)
    WHERE status = 'running' AND fence IS NULL;
CREATE INDEX run_owner ON flujo.run (owner) WHERE owner IS NOT NULL;

-- What a run began with, which may be large: written once, and not again with the run's row.
CREATE TABLE flujo.start (
    key         bigint PRIMARY KEY,
    fingerprint text COLLATE "C",
    input       bytea
);

-- One row a save. seq = run key << 24 | rev, so a run's rows lie side by side in the index.
CREATE TABLE flujo.log (
    seq      bigint PRIMARY KEY,
    idx      bigint NOT NULL,
    status   text COLLATE "C" NOT NULL,
    at       bigint NOT NULL,
    busy     bigint NOT NULL,
    ended    bigint NOT NULL,  -- step records so far
    out_rev  bigint NOT NULL,
    snap_rev bigint NOT NULL,
    records  bytea,
    output   bytea,
    delta    bytea,
    ctx      bytea NOT NULL,
    rest     bytea,
    sum      bytea NOT NULL
);

-- The newest whole context of a run whose deltas outgrew it.
CREATE TABLE flujo.snapshot (
    seq  bigint PRIMARY KEY,
    text bytea NOT NULL,
    sum  bytea NOT NULL
);

-- One row a message: written when it is posted, and never changed. seq is never used twice, in the whole store.
CREATE SEQUENCE flujo.mail_seq;
CREATE TABLE flujo.mail (
    seq    bigint PRIMARY KEY,
    run    bigint NOT NULL,  -- the run's key
    id     text COLLATE "C" NOT NULL,
    kind   text COLLATE "C" NOT NULL,
    name   text COLLATE "C" NOT NULL,
    body   bytea,
    author text COLLATE "C",
    reason text COLLATE "C",
    at     bigint NOT NULL,
    sum    bytea NOT NULL
);
CREATE UNIQUE INDEX mail_id ON flujo.mail (run, id);
CREATE INDEX mail_run ON flujo.mail (run, seq);

-- One row a fork: the run `key` has, before its own rows, those that lie under `parent`, up to save `rev`, and in turn
-- what the parent has before its own. A run that is deleted leaves its rows, and its row here, while a fork refers to it.
CREATE TABLE flujo.fork (
    key      bigint PRIMARY KEY,
    parent   bigint NOT NULL,
    rev      bigint NOT NULL,  -- 0: it shares nothing but what its parent began with
    start    bigint NOT NULL,  -- the key that its row of flujo.start lies under
    identity bytea NOT NULL,   -- of the parent, which the checksums of its rows cover
    CHECK (parent < key)       -- a run is made after the one that it is forked from
);
CREATE INDEX fork_parent ON flujo.fork (parent, rev);

CREATE FUNCTION flujo.now_us() RETURNS bigint LANGUAGE sql VOLATILE
AS $$ SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint $$;

-- The first half of the advisory locks of this schema; the second is an owner's id, or 0 (see flujo.owner).
CREATE FUNCTION flujo.space() RETURNS integer LANGUAGE sql IMMUTABLE
AS $$ SELECT pg_catalog.hashtext('flujo.owner') $$;

-- Whether an owner lives. One that is attached is dead as soon as its session is gone: the lock is then free. After a
-- restart of the server every session is gone, so for two seconds its lease alone counts.
CREATE FUNCTION flujo.lives(o flujo.owner) RETURNS boolean LANGUAGE sql VOLATILE
AS $$
    SELECT o.beat_at + o.lease > flujo.now_us() AND (
        NOT o.attached
        OR pg_catalog.pg_postmaster_start_time() > pg_catalog.clock_timestamp() - interval '2 s'
        OR CASE
            WHEN pg_catalog.pg_try_advisory_lock_shared(flujo.space(), o.id)
            THEN NOT pg_catalog.pg_advisory_unlock_shared(flujo.space(), o.id)
            ELSE true
        END
    )
$$;

-- Where a run's saves up to that one lie, the newest first: under `key`, the rows after `after` and up to `upto`.
CREATE FUNCTION flujo.parts(run bigint, newest bigint, OUT n integer, OUT key bigint, OUT after bigint, OUT upto bigint)
RETURNS SETOF record LANGUAGE sql STABLE
AS $$
    WITH RECURSIVE part (n, key, after, upto) AS (
        SELECT 0, $1, coalesce((SELECT f.rev FROM flujo.fork AS f WHERE f.key = $1), 0), $2
        UNION ALL
        SELECT p.n + 1, f.parent, coalesce((SELECT g.rev FROM flujo.fork AS g WHERE g.key = f.parent), 0),
               least(p.upto, f.rev)
        FROM part AS p JOIN flujo.fork AS f ON f.key = p.key
    )
    SELECT p.n, p.key, p.after, p.upto FROM part AS p WHERE p.upto > p.after ORDER BY p.n
$$;

-- The first of a part's rows with more records than that. Looks from the end, in strides that grow, so that it costs
-- what comes after, not what the run has grown to.
CREATE FUNCTION flujo.first_beyond(run bigint, after bigint, upto bigint, records bigint)
RETURNS bigint LANGUAGE plpgsql STABLE
AS $$
DECLARE
    least_seq bigint := run << 24 | after;
    low bigint := (
        SELECT l.seq FROM flujo.log AS l WHERE l.seq > least_seq AND l.seq <= (run << 24 | upto)
        ORDER BY l.seq DESC LIMIT 1
    );
    high bigint := low + 1;
    stride bigint := 1;
    middle bigint;
BEGIN
    IF low IS NULL THEN
        RETURN least_seq + 1;
    END IF;
    WHILE low > least_seq AND coalesce((SELECT l.ended FROM flujo.log AS l WHERE l.seq = low), -1) > records LOOP
        high := low;
        low := greatest(least_seq, low - stride);
        stride := stride * 2;
    END LOOP;
    WHILE high - low > 1 LOOP
        middle := (low + high) / 2;
        IF coalesce((SELECT l.ended FROM flujo.log AS l WHERE l.seq = middle), -1) > records THEN
            high := middle;
        ELSE
            low := middle;
        END IF;
    END LOOP;
    RETURN high;
END
$$;

-- The context's JSON text after a save. It is folded from its deltas: a line of JSON, [[offset, removed, start,
-- length], ...], a line feed, then the inserted bytes.
CREATE FUNCTION flujo.context_text(run bigint, newest bigint, snap bigint) RETURNS text LANGUAGE plpgsql STABLE
AS $$
DECLARE
    folded bytea;
    found bigint := 0;
    change bytea;
    splice jsonb;
    head integer;
BEGIN
    SELECT s.text, snap INTO folded, found
    FROM flujo.parts(run, newest) AS p JOIN flujo.snapshot AS s ON s.seq = (p.key << 24 | snap)
    WHERE snap > p.after AND snap <= p.upto;
    folded := coalesce(folded, '');
    FOR change IN
        SELECT l.delta
        FROM flujo.parts(run, newest) AS p
        JOIN flujo.log AS l
            ON l.seq > (p.key << 24 | greatest(p.after, coalesce(found, 0))) AND l.seq <= (p.key << 24 | p.upto)
        WHERE l.delta IS NOT NULL
        ORDER BY l.seq & 16777215
    LOOP
        head := position('\x0a'::bytea IN change);
        FOR splice IN
            SELECT s.value FROM pg_catalog.jsonb_array_elements(
                pg_catalog.convert_from(substring(change FROM 1 FOR head - 1), 'UTF8')::jsonb
            ) AS s
        LOOP
            folded := substring(folded FROM 1 FOR (splice ->> 0)::integer)
                || substring(change FROM head + 1 + (splice ->> 2)::integer FOR (splice ->> 3)::integer)
                || substring(folded FROM 1 + (splice ->> 0)::integer + (splice ->> 1)::integer);
        END LOOP;
    END LOOP;
    RETURN coalesce(nullif(pg_catalog.convert_from(folded, 'UTF8'), ''), '{}');
END
$$;

-- For people and for plain SQL. The payloads are JSON text; jsonb could not hold all of them (it has no \u0000).
CREATE VIEW flujo.workflow_state AS
SELECT
    r.run_id, r.pipeline_id, r.pipeline_name, r.pipeline_version,
    h.idx AS current_step_index,
    r.total_steps,
    flujo.context_text(r.key, h.seq & 16777215, h.snap_rev) AS pipeline_context,
    (
        SELECT pg_catalog.convert_from(o.output, 'UTF8')
        FROM flujo.parts(r.key, h.out_rev) AS p JOIN flujo.log AS o ON o.seq = (p.key << 24 | h.out_rev)
        WHERE h.out_rev > p.after AND h.out_rev <= p.upto
    ) AS last_step_output,
    r.status,
    CASE WHEN r.status <> 'running' THEN r.error_message END AS error_message,
    h.busy / 1000.0::double precision AS execution_time_ms,
    timestamptz 'epoch' + r.created_at * interval '1 microsecond' AS created_at,
    timestamptz 'epoch' + h.at * interval '1 microsecond' AS updated_at
FROM flujo.run AS r
CROSS JOIN LATERAL (
    SELECT l.* FROM flujo.log AS l WHERE l.seq > r.key << 24 AND l.seq < (r.key + 1) << 24
    ORDER BY l.seq DESC LIMIT 1
) AS h;
