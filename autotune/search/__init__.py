"""The search: space, memory rule, sampler, study, confirmation."""
