-- What version 2 adds to version 1. A new store is made by both scripts, an older one is brought to this version by
-- this one alone.

-- One row a message: written when it is posted, and never changed. seq is never used twice, in the whole store.
CREATE TABLE flujo_mail (
    seq    INTEGER PRIMARY KEY AUTOINCREMENT,
    run    INTEGER NOT NULL,  -- the run's key
    id     TEXT NOT NULL,
    kind   TEXT NOT NULL,
    name   TEXT NOT NULL,
    body   BLOB,
    author TEXT,
    reason TEXT,
    at     INTEGER NOT NULL,
    sum    BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX flujo_mail_id ON flujo_mail (run, id);
CREATE INDEX flujo_mail_run ON flujo_mail (run, seq);

-- The runs whose time comes next.
CREATE INDEX flujo_run_due ON flujo_run (due_at) WHERE status = 'paused' AND due_at IS NOT NULL;
