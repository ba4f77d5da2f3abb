"""A table, not images: does a pair of networks that teach each other beat one? Breast cancer, cross-validated."""

from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import teacherless as tl

x, y = load_breast_cancer(return_X_y=True)
for name, method in (("one network", "plain"), ("peer of two", "dml")):
    pipeline = make_pipeline(StandardScaler(), tl.PeerClassifier(method=method, epochs=20, random_state=0))
    scores = 100 * cross_val_score(pipeline, x, y, cv=5)
    print(f"{name}: {scores.mean():.1f} ± {scores.std(ddof=1):.1f} % over 5 folds")
