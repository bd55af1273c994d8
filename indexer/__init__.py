"""The rebuild job: plan -> read -> embed -> train -> add -> describe -> measure -> publish."""
