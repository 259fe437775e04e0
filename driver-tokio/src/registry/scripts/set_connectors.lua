-- KEYS: attachments. ARGV: echo, replica, incarnation, epoch, nonce, connectors.
local own = typed(KEYS[1], 'hash') and record(redis.call('HGET', KEYS[1], ARGV[2]))
if not own or own.inc ~= ARGV[3] or own.epoch ~= ARGV[4] or own.nonce ~= ARGV[5] then return answer('stale') end
own.connectors = ARGV[6]
redis.call('HSET', KEYS[1], ARGV[2], cjson.encode(own))
return answer('done')
