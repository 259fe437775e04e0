-- KEYS: attachments. ARGV: echo, replica, incarnation, epoch, nonce.
-- The epoch key is not named here: it outlives every attachment.
if not typed(KEYS[1], 'hash') then return answer('done') end
local raw = redis.call('HGET', KEYS[1], ARGV[2])
if not raw then return answer('done') end
local own = record(raw)
if own and own.inc == ARGV[3] and own.epoch == ARGV[4] and own.nonce == ARGV[5] then
  redis.call('HDEL', KEYS[1], ARGV[2])
  return answer('done')
end
return answer('stale')
