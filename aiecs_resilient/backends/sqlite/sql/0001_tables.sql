-- What the engine needs of a store (backends/_engine.py, Tables), one database file, times and stamps in microseconds.
-- A key's own number stands for it everywhere else, so that long ids are kept once.

CREATE TABLE meta (
  name TEXT PRIMARY KEY,
  value NOT NULL
) WITHOUT ROWID;

CREATE TABLE keys (
  id INTEGER PRIMARY KEY,
  place BLOB NOT NULL UNIQUE,               -- bytes of encode_key(key): what lists are ordered by
  key TEXT NOT NULL,
  clock INTEGER NOT NULL DEFAULT 0,
  session_dead INTEGER NOT NULL DEFAULT 0,
  thread_dead INTEGER NOT NULL DEFAULT 0,
  session_expires INTEGER NOT NULL DEFAULT 0,
  thread_expires INTEGER NOT NULL DEFAULT 0,
  current TEXT NOT NULL DEFAULT '',         -- incarnation of the session that counts
  has_session INTEGER NOT NULL DEFAULT 0,   -- a session, messages or contexts
  has_thread INTEGER NOT NULL DEFAULT 0,    -- checkpoints or pending writes
  status TEXT,                              -- of the current session, for lists; NULL without one
  owner TEXT
);
CREATE INDEX keys_with_session ON keys (place) WHERE status IS NOT NULL;
CREATE INDEX keys_by_status ON keys (status, place) WHERE status IS NOT NULL;
CREATE INDEX keys_by_owner ON keys (owner, place) WHERE status IS NOT NULL;
CREATE INDEX keys_with_thread ON keys (place) WHERE has_thread;
CREATE INDEX keys_idle ON keys (clock) WHERE has_session;
CREATE INDEX keys_session_expiry ON keys (session_expires) WHERE has_session AND session_expires > 0;
CREATE INDEX keys_thread_expiry ON keys (thread_expires) WHERE has_thread AND thread_expires > 0;

-- One row per operation. A message is the row of the operation that said it: position is set as long as it is visible.
CREATE TABLE records (
  key INTEGER NOT NULL,
  op_id TEXT NOT NULL,
  kind TEXT NOT NULL,
  stamp INTEGER NOT NULL,
  rank INTEGER NOT NULL,
  home TEXT NOT NULL,
  marked INTEGER NOT NULL,                  -- the peer store lacks it
  fingerprint BLOB NOT NULL,
  occurred_at INTEGER NOT NULL,
  answer BLOB NOT NULL,
  effect BLOB,                              -- NULL: nothing to replay
  expires_at INTEGER NOT NULL,
  format INTEGER NOT NULL,
  held INTEGER NOT NULL DEFAULT 0,          -- its checkpoint is still the stored one: as long, it is remembered
  position INTEGER,
  said_at INTEGER,
  role TEXT,
  content TEXT,
  metadata BLOB,
  UNIQUE (key, op_id)
);
CREATE INDEX records_messages ON records (key, position, op_id) WHERE position IS NOT NULL;
CREATE INDEX records_others ON records (key, stamp, op_id) WHERE position IS NULL;
CREATE INDEX records_marked ON records (stamp, key, op_id) WHERE marked;
CREATE INDEX records_forgettable ON records (stamp) WHERE position IS NULL AND NOT held AND NOT marked;

CREATE TABLE sessions (
  key INTEGER NOT NULL,
  inc TEXT NOT NULL,
  created INTEGER,
  user_id TEXT NOT NULL,
  metadata BLOB NOT NULL,
  created_at INTEGER NOT NULL,
  requests INTEGER NOT NULL,
  time_us INTEGER NOT NULL,
  errors INTEGER NOT NULL,
  fields BLOB NOT NULL,
  ended_stamp INTEGER,
  ended_op TEXT,
  ended_status TEXT,
  touched INTEGER NOT NULL,
  touched_at INTEGER NOT NULL,
  UNIQUE (key, inc)
);

CREATE TABLE contexts (
  key INTEGER NOT NULL,
  op_id TEXT NOT NULL,
  stamp INTEGER NOT NULL,
  occurred_at INTEGER NOT NULL,
  value BLOB NOT NULL,
  UNIQUE (key, op_id)
);
CREATE INDEX contexts_by_stamp ON contexts (key, stamp, op_id);

-- data NULL: pruned at that stamp.
CREATE TABLE checkpoints (
  key INTEGER NOT NULL,
  ns TEXT NOT NULL,
  id TEXT NOT NULL,
  stamp INTEGER NOT NULL,
  op_id TEXT NOT NULL,
  occurred_at INTEGER NOT NULL,
  data BLOB,
  metadata BLOB,
  parent TEXT,
  UNIQUE (key, ns, id)
);
CREATE INDEX checkpoints_newest ON checkpoints (key, ns, stamp, op_id) WHERE data IS NOT NULL;

CREATE TABLE writes (
  key INTEGER NOT NULL,
  ns TEXT NOT NULL,
  id TEXT NOT NULL,
  task TEXT NOT NULL,
  stamp INTEGER NOT NULL,
  op_id TEXT NOT NULL,
  occurred_at INTEGER NOT NULL,
  path TEXT NOT NULL,
  value BLOB NOT NULL,
  UNIQUE (key, ns, id, task)
);
