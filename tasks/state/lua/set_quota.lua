-- Changes some of a tenant's quotas; null removes one. Returns all that it has then.

local is_read, quotas = pcall(cjson.decode, redis.call('HGET', quotas_key, tenant) or '{}')
if not is_read or type(quotas) ~= 'table' then quotas = {} end
for name, value in pairs(changes) do quotas[name] = value ~= cjson.null and value or nil end
if next(quotas) == nil then
  redis.call('HDEL', quotas_key, tenant)
  return '{}'
end
local text = cjson.encode(quotas)
redis.call('HSET', quotas_key, tenant, text)
redis.call('EXPIRE', quotas_key, ttl_s)
return text
