"""Do the adversarial examples of one model fool others? (Szegedy et al. 2013, section 4.2)."""
