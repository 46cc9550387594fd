-- Records a job and sends it, or lets it wait. Returns 'exists', 'sent' or 'waiting'.

-- include: job.lua

if exists() then return 'exists' end
set(fields)
set({created_at = now})
append_event(event)
save()
add_to_index(keys.jobs, now)
add_to_index(keys.tenant_jobs_prefix .. get('tenant'), now)
return send_or_wait(first_queue)
