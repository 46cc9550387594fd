-- Returns 'superseded' or the job's status: whether this start should continue, in one call.

-- include: job.lua

if is_superseded(token) then return 'superseded' end
return get('status')
