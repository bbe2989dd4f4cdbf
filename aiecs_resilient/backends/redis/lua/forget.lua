-- Forget records past retention that nothing needs any more. ARGV: id, name, horizon, then op_ids. A record stays while
-- its mark is open, or while the message or checkpoint that it made lives: that is how their repeats are recognised.

local HORIZON, forgotten = tonumber(ARGV[3]), 0
for i = 4, #ARGV do
  local op = ARGV[i]
  local known = F.load_record(op)
  local needed = known and (known.marked or known.stamp >= HORIZON
    or (known.kind == KIND.message or known.kind == KIND.checkpoint) and F.value_of(op, known) ~= nil)
  if not needed then
    redis.call('HDEL', K.records, op)
    redis.call('ZREM', K.log, F.member_of(op))
    forgotten = forgotten + 1
  end
end
return forgotten
