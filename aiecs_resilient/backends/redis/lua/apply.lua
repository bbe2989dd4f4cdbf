-- Apply mutations of one id, each at most once and atomically with its record: _engine.py's apply_one.
-- ARGV: id, name, now ('' for the server's clock), max age, context versions, format, then nine per mutation:
-- head, op_id, home, fingerprint, answer, a, b, c, body (see record.lua and _rows.py).

local NOW, MAX_AGE, FORMAT = F.clock_us(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[6])
local LEAD = 1000000  -- how far a proposed stamp may run ahead of the store's clock
local REPLAY, MARK, HAS, EXPECTED, MUST_ACT = 1, 2, 4, 8, 16

local routed = redis.call('GET', K.route)
local EPOCH, LEADER = 0, ''
if routed then
  local epoch, leader = string.match(routed, '^(%d+) (.*)$')
  EPOCH, LEADER = tonumber(epoch), leader
end

function F.read_mutation(from)
  local m, flags, dead_session, dead_thread = {}, 0, 0, 0
  m.kind, flags, m.format, m.rank, m.epoch, m.stamp, m.occurred_at, m.expires_at, m.expected, dead_session,
    dead_thread = struct.unpack('>BBHdddddddd', ARGV[from])
  m.replay, m.mark = bit.band(flags, REPLAY) > 0, bit.band(flags, MARK) > 0
  m.must_act = bit.band(flags, MUST_ACT) > 0
  m.op, m.home, m.fingerprint, m.answer = ARGV[from + 1], ARGV[from + 2], ARGV[from + 3], ARGV[from + 4]
  m.effect = { has = bit.band(flags, HAS) > 0, a = ARGV[from + 5], b = ARGV[from + 6], c = ARGV[from + 7],
    body = ARGV[from + 8], dead_session = dead_session, dead_thread = dead_thread }
  if bit.band(flags, EXPECTED) == 0 then
    m.expected = nil
  end
  m.place = 0
  return m
end

function F.prepare(kind)
  if kind <= KIND.ending then
    F.need_merge_session()
  elseif kind == KIND.message then
    F.need_merge_message()
  elseif kind == KIND.context then
    F.need_merge_context()
  elseif kind == KIND.delete then
    F.need_bury()
  else
    F.need_merge_thread()
  end
end

function F.bury_dead(e)
  if e.dead_session > 0 or e.dead_thread > 0 then
    F.need_bury()
    F.bury(e.dead_session, e.dead_thread)
  end
end

function F.renew_expiry(m)
  if m.kind == KIND.checkpoint or m.kind == KIND.writes or m.kind == KIND.prune then
    row.thread_expires = math.max(row.thread_expires, m.expires_at)
  elseif m.kind ~= KIND.delete then
    row.session_expires = math.max(row.session_expires, m.expires_at)
  end
end

-- ---------------------------------------------------------------- the three ways in

function F.record(m, answer, effect)
  F.save_record(m.op, {
    kind = m.kind, marked = m.mark and effect ~= nil, format = m.format, rank = m.rank, stamp = m.stamp,
    occurred_at = m.occurred_at, expires_at = m.expires_at, place = m.place, home = m.home, answer = answer,
    fingerprint = m.fingerprint, effect = effect,
  }, false)
end

function F.accept(m)
  F.prepare(m.kind)
  if not DECIDE[m.kind] then
    return F.refuse('kind')
  end
  local dead_session, dead_thread = 0, 0
  if 0 < row.session_expires and row.session_expires <= NOW and row.session_dead < row.session_expires then
    dead_session = row.session_expires
  end
  if 0 < row.thread_expires and row.thread_expires <= NOW and row.thread_dead < row.thread_expires then
    dead_thread = row.thread_expires
  end
  -- Above all that is void: a write minted before an expiry and arriving after it is alive.
  local floor = math.max(row.clock, row.session_dead, row.thread_dead, dead_session, dead_thread)
  local stamp = math.max(math.min(m.stamp, NOW + LEAD), floor + 1)
  local answer, effect, refusal = DECIDE[m.kind](m, dead_session, dead_thread)
  if refusal then
    return refusal
  elseif not effect and m.must_act then
    return F.refuse('nothing')
  end
  m.stamp = stamp
  if effect then  -- a write without effect moves no clock: the peer never hears of it
    row.clock = stamp
    effect.dead_session, effect.dead_thread = dead_session, dead_thread
    F.bury_dead(effect)
    MERGE[m.kind](m, effect)
    F.renew_expiry(m)
    F.save_row()
  end
  F.record(m, answer, effect)
  if not effect then
    return { 1, stamp, answer, -1 }
  end
  local ids = m.kind == KIND.prune and effect.body or ''
  return { 1, stamp, answer, 1, effect.a, ids, dead_session, dead_thread }
end

function F.follow(m)
  F.prepare(m.kind)
  if not MERGE[m.kind] then
    return F.refuse('kind')
  end
  row.clock = math.max(row.clock, m.stamp)
  F.bury_dead(m.effect)
  if m.effect.has then
    MERGE[m.kind](m, m.effect)
  end
  F.renew_expiry(m)
  F.save_row()
  F.record(m, m.answer, m.effect)
  return { 1 }
end

function F.again(known, m)
  local was_marked, raw = known.marked, nil
  if not m.replay then
    if known.fingerprint ~= m.fingerprint then
      return F.refuse('reused')
    end
    if m.rank > known.rank then
      known.rank = m.rank
      known.marked = known.marked or (m.mark and known.effect ~= nil)
      raw = F.save_record(m.op, known, was_marked)
    end
  else
    if m.rank > known.rank or (m.rank == known.rank and m.stamp > known.stamp) then
      F.prepare(known.kind)
      F.need_redo()
      F.redo(known, m)
      F.save_row()
      known.stamp, known.rank, known.answer = m.stamp, m.rank, m.answer
      known.marked = false
    else
      -- The peer evidently has it. Only if it stands there under a losing stamp must it still hear of ours,
      -- also if ours did nothing: then the peer has something to withdraw.
      known.marked = m.rank ~= known.rank or m.stamp ~= known.stamp
      if known.marked and not known.effect then
        known.effect = { has = false, a = '', b = '', c = '', body = '', dead_session = 0, dead_thread = 0 }
      end
    end
    raw = F.save_record(m.op, known, was_marked)
  end
  return { 2, raw or F.pack_record(known), F.value_of(m.op, known) or false }
end

function F.apply(m)
  local fenced = m.epoch ~= 0 and not (m.replay and m.epoch >= EPOCH)
    and not (not m.replay and m.epoch == EPOCH and m.home == LEADER)
  if fenced then
    return F.refuse('route', F.int(EPOCH), LEADER)
  end
  if m.format > FORMAT then
    return F.refuse('format')
  end
  local known = F.load_record(m.op)
  if known then
    return F.again(known, m)
  end
  if m.replay then
    return F.follow(m)
  end
  if m.stamp < NOW - MAX_AGE then
    return F.refuse('old', F.int(NOW - m.stamp))
  end
  return F.accept(m)
end

F.load_row()
local results = {}
for from = 7, #ARGV, 9 do
  results[#results + 1] = F.apply(F.read_mutation(from))
end
return results
