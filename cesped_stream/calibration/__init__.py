"""How sure a pose is: fusion weights and P(within 5 degrees of the consensus), fitted on particles unseen before."""
