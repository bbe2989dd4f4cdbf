-- Close marks that still stand as named. ARGV: id, name, then op_id, stamp, rank of each. Answers how many were closed.

local closed = 0
for i = 3, #ARGV, 3 do
  local op, stamp, rank = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local known = F.load_record(op)
  if known and known.marked and known.stamp == stamp and known.rank == rank then
    known.marked = false
    redis.call('HSET', K.records, op, F.pack_record(known))
    redis.call('ZREM', K.marks, F.member_of(op))
    closed = closed + 1
  end
end
return closed
