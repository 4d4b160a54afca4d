"""Features of images become numbers and figures. Whatever you import from here, `Features` has all its verbs."""
from . import (class_figures, cluster_scores, feature_map, figures, knn, linear_probe, prototype_figures,
               prototype_similarity, report, retrieval)
