-- Records of one id with the values they refer to. ARGV: id, name, then op_ids. Answers record, value for each; false if gone.

local answer = {}
for i = 3, #ARGV do
  local raw = redis.call('HGET', K.records, ARGV[i])
  answer[#answer + 1] = raw
  answer[#answer + 1] = raw and F.value_of(ARGV[i], F.unpack_record(raw)) or false
end
return answer
