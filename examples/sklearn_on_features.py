"""A scikit-learn classifier on the features of a pretrained backbone.

The shipped model learned from the rotations of CIFAR-10's photographs and has never seen a digit. With few
labels, its features beat the pixels all the same.
"""

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rotnet_fast import load_backbone
from rotnet_fast.data import digits
from rotnet_fast.data.datasets import limit_split

backbone = load_backbone("nin4-cifar10-jpeg", device="cpu")
dataset = digits.load(None, image_size=16, progress=False)
accuracy = {}
for labels_per_class in (1, 5, 20):
    train = limit_split(dataset.train, 10 * labels_per_class, "limit_train")  # images uint8 [N,16,16,3]
    for name in ("pixels", "features"):
        train_x, test_x = (
            # The maps, float32 [N,96,4,4], keep where things are; backbone(images) would average over place.
            (backbone.features(images, layer="conv2") if name == "features" else images).flatten(1).numpy()
            for images in (train.images, dataset.test.images)
        )
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        classifier.fit(train_x, train.labels.numpy())
        accuracy[name, labels_per_class] = classifier.score(test_x, dataset.test.labels.numpy())
    print(
        f"{labels_per_class} labels per class: pixels {accuracy['pixels', labels_per_class]:.1%}, "
        f"features {accuracy['features', labels_per_class]:.1%}"
    )
