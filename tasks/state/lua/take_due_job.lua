-- Takes a job whose retry is due, for the caller to send. Returns 1, or 0 if another caller has it
-- or the job has ended.

-- include: job.lua

if redis.call('ZREM', keys.due, job_id) == 0 then return 0 end
unset('due_at')
if not exists() or has_ended() then write_hash() return 0 end
put_in_flight()
save()
return 1
