"""Stories of gangs: what each rank does, in processes of its own, by topic."""
