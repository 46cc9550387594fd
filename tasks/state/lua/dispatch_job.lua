-- Takes the first job out of a tenant queue and sends it. Returns {'sent', job, fields, candidates},
-- where the caller sends the job if `fields` is no empty string: an older version let it wait; then
-- {'waiting'} if the queue is full, the tenant is at a limit or quota or another caller was faster; or
-- {'gone'} if the job has expired or cannot be read.
local first_job = redis.call('ZRANGE', tenant_queue, 0, 0)[1]
if not first_job then return {'waiting'} end
local job_key = keys.job_prefix .. first_job
local events_key = job_key .. keys.events_suffix

-- include: job.lua

local is_read, waits_in = pcall(get, 'tenant_queue')
if not is_read or waits_in ~= queue then
  remove_from_tenant_queue(queue, tenant)
  return {'gone'}
end
if not has_room(queue) or not is_below_limit(tenant) or used_up_quota(tenant) then
  return {'waiting'}
end
local message = get('waiting_message')
leave_tenant_queue()
redis.call('ZADD', tenants_key(queue), 'XX', now, tenant)
put_in_flight()
save()
if message then push(queue, message) end
return {'sent', job_id, message and '' or all_fields(), dispatch_candidates()}
