-- KEYS: an index. ARGV: echo, then pairs of member and the score that was read.
local removed = 0
if typed(KEYS[1], 'zset') then
  for i = 2, #ARGV, 2 do
    local score = redis.call('ZSCORE', KEYS[1], ARGV[i])
    if score and tonumber(score) == tonumber(ARGV[i + 1]) then
      removed = removed + redis.call('ZREM', KEYS[1], ARGV[i])
    end
  end
end
return answer('removed', tostring(removed))
