-- KEYS: attachments. ARGV: echo, then pairs of replica and the record that was read.
local removed = 0
if typed(KEYS[1], 'hash') then
  for i = 2, #ARGV, 2 do
    if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then
      removed = removed + redis.call('HDEL', KEYS[1], ARGV[i])
    end
  end
end
return answer('removed', tostring(removed))
