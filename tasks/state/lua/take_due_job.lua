-- Takes a job whose retry is due, for the caller to send. Returns 1, or 0 if another caller has it
-- or the job has ended.

-- include: job.lua

if redis.call('ZSCORE', keys.due, job_id) == false then return 0 end
clear_due()
if not exists() or has_ended() then return 0 end
put_in_flight()
save()
return 1
