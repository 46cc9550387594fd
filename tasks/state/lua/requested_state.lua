-- Returns 'superseded' or the job's status: whether this start should continue, in one call. A start
-- asks while it runs, so that its job's keys are renewed even if it writes nothing for long.

-- include: job.lua

if is_superseded(token) then return 'superseded' end
note_alive()
renew_if_due()
return get('status')
