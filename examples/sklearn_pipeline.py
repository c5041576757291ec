"""A grid search over the layers of a pretrained network, in a scikit-learn pipeline.

`RotNetFeatures` is a transformer like any other: here, cross-validation with five labelled digits per class
decides which feature map a classifier does best on.
"""

from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from rotnet_fast import RotNetFeatures
from rotnet_fast.data import digits
from rotnet_fast.data.datasets import limit_split

dataset = digits.load(None, image_size=16, progress=False)
train, test = limit_split(dataset.train, 50, "limit_train"), limit_split(dataset.test, 100, "limit_test")
pipeline = Pipeline(
    [
        ("features", RotNetFeatures("nin4-cifar10-jpeg", device="cpu")),
        ("scale", StandardScaler()),
        ("classify", LogisticRegression(max_iter=2000)),
    ]
)
search = GridSearchCV(pipeline, {"features__layer": ["conv1", "conv2", "conv3", "conv4"]}, cv=3)
search.fit(train.images.numpy(), train.labels.numpy())  # uint8 [50,16,16,3]
for layer, accuracy in zip(
    search.cv_results_["param_features__layer"], search.cv_results_["mean_test_score"], strict=True
):
    print(f"{layer}: {accuracy:.1%} in cross-validation")
test_accuracy = search.score(test.images.numpy(), test.labels.numpy())
print(f"{search.best_params_['features__layer']}: {test_accuracy:.1%} on {len(test)} test images")
