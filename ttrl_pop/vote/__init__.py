"""VOTE: a group becomes answers, clusters, a label and rewards."""
