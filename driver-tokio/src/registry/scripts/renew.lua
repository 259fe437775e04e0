-- KEYS: lease. ARGV: echo, incarnation, lease in ms, incarnation it takes over or '', region or ''.
local held = typed(KEYS[1], 'string') and record(redis.call('GET', KEYS[1]))
local by = held and type(held.inc) == 'string' and #held.inc == 16 and string.match(held.inc, '^[0-9a-f]+$')
-- More than a lease is left only when the clock stepped back.
if by and by ~= ARGV[2] and by ~= ARGV[4] and redis.call('PTTL', KEYS[1]) <= tonumber(ARGV[3]) then
  return answer('held', by)
end
local lease = {v = SCHEMA, inc = ARGV[2]}
if ARGV[5] ~= '' then lease.region = ARGV[5] end
redis.call('SET', KEYS[1], cjson.encode(lease), 'PX', ARGV[3])
return answer('renewed')
