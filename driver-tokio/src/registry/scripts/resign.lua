-- KEYS: lease. ARGV: echo, incarnation.
local held = typed(KEYS[1], 'string') and record(redis.call('GET', KEYS[1]))
if held and held.inc ~= ARGV[2] then return answer('stale') end
redis.call('DEL', KEYS[1])
return answer('done')
