"""Five long-range tasks, and any attention part on any of them: LRA-like, not comparable with published LRA.

The tasks, the models and their settings are shaped after Tay et al., "Long Range Arena" (2021). The data are made
here, by generators or of what comes with Python and scikit-learn, so accuracies compare parts with each other alone.
"""
