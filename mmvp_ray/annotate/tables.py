"""The tables of a workspace's database: one SQLite file, every change of state in one transaction with the event that records it."""

from __future__ import annotations

from typing import Final

TABLES_VERSION: Final = 1
"""Raised by every change that an older reader would misread; kept in meta and checked on opening."""

TABLES: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;

-- People who log in. Times are seconds since 1970, UTC; secrets are kept as SHA-256 alone.
CREATE TABLE users (
    user_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE COLLATE NOCASE,
    role TEXT NOT NULL,
    created_at REAL NOT NULL,
    disabled_at REAL
) STRICT;
CREATE TABLE login_tokens (
    token_sha256 BLOB PRIMARY KEY,
    user_id INTEGER NOT NULL REFERENCES users,
    expires_at REAL NOT NULL,
    used_at REAL
) STRICT, WITHOUT ROWID;
CREATE TABLE sessions (
    session_sha256 BLOB PRIMARY KEY,
    user_id INTEGER NOT NULL REFERENCES users,
    csrf TEXT NOT NULL,
    created_at REAL NOT NULL,
    expires_at REAL NOT NULL
) STRICT, WITHOUT ROWID;

-- What was imported: a batch is one mining run. image_id is the SHA-256 (hex) of the encoded bytes.
CREATE TABLE batches (
    batch_id INTEGER PRIMARY KEY,
    source TEXT NOT NULL UNIQUE,
    title TEXT NOT NULL,
    near TEXT NOT NULL,
    far TEXT NOT NULL,
    imported_at REAL NOT NULL
) STRICT;
CREATE TABLE images (
    image_id TEXT PRIMARY KEY,
    extension TEXT NOT NULL,
    num_bytes INTEGER NOT NULL,
    width_px INTEGER NOT NULL,
    height_px INTEGER NOT NULL,
    is_unsafe INTEGER NOT NULL,
    uri TEXT NOT NULL,
    member TEXT NOT NULL,
    caption TEXT,
    label TEXT,
    url TEXT,
    license TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE pairs (
    pair_id INTEGER PRIMARY KEY,
    batch_id INTEGER NOT NULL REFERENCES batches,
    rank INTEGER NOT NULL,
    image_a TEXT NOT NULL REFERENCES images,
    image_b TEXT NOT NULL REFERENCES images,
    cos_near REAL NOT NULL,
    cos_far REAL NOT NULL,
    state TEXT NOT NULL,
    UNIQUE (image_a, image_b)
) STRICT;
CREATE INDEX pairs_by_state ON pairs (state, batch_id, rank);

-- Who holds a pair right now, for which task; one holder at most, which the primary key sees to.
CREATE TABLE leases (
    pair_id INTEGER PRIMARY KEY REFERENCES pairs,
    user_id INTEGER NOT NULL REFERENCES users,
    task TEXT NOT NULL,
    expires_at REAL NOT NULL
) STRICT;
CREATE INDEX leases_by_user ON leases (user_id, task);
CREATE TABLE skips (
    user_id INTEGER NOT NULL REFERENCES users,
    pair_id INTEGER NOT NULL REFERENCES pairs,
    task TEXT NOT NULL,
    skipped_at REAL NOT NULL,
    PRIMARY KEY (user_id, pair_id, task)
) STRICT, WITHOUT ROWID;
CREATE TABLE drafts (
    pair_id INTEGER NOT NULL REFERENCES pairs,
    user_id INTEGER NOT NULL REFERENCES users,
    content TEXT NOT NULL,
    saved_at REAL NOT NULL,
    PRIMARY KEY (pair_id, user_id)
) STRICT, WITHOUT ROWID;

-- What people wrote. An annotation that was undone, corrected or whose pair was dropped has replaced_at; options are a JSON list.
CREATE TABLE annotations (
    annotation_id INTEGER PRIMARY KEY,
    pair_id INTEGER NOT NULL REFERENCES pairs,
    author INTEGER NOT NULL REFERENCES users,
    difference TEXT NOT NULL,
    question TEXT NOT NULL,
    options TEXT NOT NULL,
    answer_a INTEGER NOT NULL,
    answer_b INTEGER NOT NULL,
    pattern TEXT NOT NULL,
    suggestion_id INTEGER REFERENCES suggestions,
    created_at REAL NOT NULL,
    replaced_at REAL
) STRICT;
CREATE INDEX annotations_by_pair ON annotations (pair_id, replaced_at);
CREATE UNIQUE INDEX one_live_annotation ON annotations (pair_id) WHERE replaced_at IS NULL;
-- What a vision-language model proposed, whole, whether or not it was used.
CREATE TABLE suggestions (
    suggestion_id INTEGER PRIMARY KEY,
    pair_id INTEGER NOT NULL REFERENCES pairs,
    user_id INTEGER NOT NULL REFERENCES users,
    model TEXT NOT NULL,
    prompt TEXT NOT NULL,
    answer TEXT NOT NULL,
    created_at REAL NOT NULL
) STRICT;
-- A choice is an index into the annotation's options, -1 for "cannot tell"; option_order is how the options were shown.
CREATE TABLE verifications (
    verification_id INTEGER PRIMARY KEY,
    annotation_id INTEGER NOT NULL REFERENCES annotations,
    verifier INTEGER NOT NULL REFERENCES users,
    first_side TEXT NOT NULL,
    option_order TEXT NOT NULL,
    choice_a INTEGER,
    choice_b INTEGER,
    seconds_a REAL,
    seconds_b REAL,
    shown_at REAL NOT NULL,
    comment TEXT NOT NULL DEFAULT '',
    finished_at REAL,
    agrees INTEGER,
    UNIQUE (annotation_id, verifier)
) STRICT;
-- MMVP-VLM: one sentence for each image. state: written, approved, returned.
CREATE TABLE statements (
    statement_id INTEGER PRIMARY KEY,
    annotation_id INTEGER NOT NULL REFERENCES annotations,
    author INTEGER NOT NULL REFERENCES users,
    text_a TEXT NOT NULL,
    text_b TEXT NOT NULL,
    state TEXT NOT NULL,
    reviewer INTEGER REFERENCES users,
    comment TEXT NOT NULL DEFAULT '',
    created_at REAL NOT NULL,
    reviewed_at REAL
) STRICT;
CREATE INDEX statements_by_annotation ON statements (annotation_id);

-- The audit trail: rows are only ever added, which the triggers see to.
CREATE TABLE events (
    event_id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    user_id INTEGER REFERENCES users,
    pair_id INTEGER REFERENCES pairs,
    kind TEXT NOT NULL,
    content TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_pair ON events (pair_id);
CREATE INDEX events_by_user ON events (user_id, kind);
CREATE TRIGGER events_stay BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are never removed'); END;
CREATE TRIGGER events_never_change BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;

-- Studies ask a benchmark's questions, copied here, of people who come by a link.
CREATE TABLE studies (
    study_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE COLLATE NOCASE,
    title TEXT NOT NULL,
    intro TEXT NOT NULL,
    benchmark TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    seed INTEGER NOT NULL,
    min_gap INTEGER NOT NULL,
    shuffles_options INTEGER NOT NULL,
    created_at REAL NOT NULL
) STRICT;
CREATE TABLE study_questions (
    study_id INTEGER NOT NULL REFERENCES studies,
    place INTEGER NOT NULL,
    pair_id TEXT NOT NULL,
    item TEXT NOT NULL,
    image_id TEXT NOT NULL REFERENCES images,
    question TEXT NOT NULL,
    options TEXT NOT NULL,
    answer INTEGER NOT NULL,
    patterns TEXT NOT NULL,
    PRIMARY KEY (study_id, place),
    UNIQUE (study_id, pair_id, item)
) STRICT, WITHOUT ROWID;
CREATE TABLE participants (
    participant_id INTEGER PRIMARY KEY,
    study_id INTEGER NOT NULL REFERENCES studies,
    name TEXT NOT NULL,
    token_sha256 BLOB NOT NULL UNIQUE,
    seed INTEGER NOT NULL,
    agreed_at REAL,
    finished_at REAL,
    UNIQUE (study_id, name)
) STRICT;
CREATE INDEX study_questions_by_image ON study_questions (image_id);
-- place: the participant's own order, from 0. choice: an index into the question's own options, -1 for "cannot tell", null while shown.
CREATE TABLE responses (
    participant_id INTEGER NOT NULL REFERENCES participants,
    place INTEGER NOT NULL,
    question_place INTEGER NOT NULL,
    option_order TEXT NOT NULL,
    shown_at REAL NOT NULL,
    choice INTEGER,
    seconds REAL,
    answered_at REAL,
    PRIMARY KEY (participant_id, place),
    UNIQUE (participant_id, question_place)
) STRICT, WITHOUT ROWID;
"""
