"""`ftj run --local`: the stages of a job as processes on this machine."""
