"""Linear probe: logistic regression on pooled frozen features, from scikit-learn.

Paper: none on CIFAR-10; its classifiers are deeper. Ours: standardised global-average-pooled features of
un-augmented images and scikit-learn's default penalty, so that there is nothing to tune.
"""

from __future__ import annotations

import torch


def linear_predict(
    bank: torch.Tensor, bank_labels: torch.Tensor, queries: torch.Tensor, num_classes: int
) -> torch.Tensor:
    """Predict the class of each query by multinomial logistic regression.

    Args:
        bank: fp32 [N,D], features of the labelled images.
        bank_labels: int64 [N] in [0, num_classes).
        queries: fp32 [Q,D].
        num_classes: not used; labels tell.

    Returns:
        int64 [Q], on the device of ``queries``.
    """
    # Here: scikit-learn takes a second to import.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(bank.double().cpu().numpy(), bank_labels.cpu().numpy())
    return torch.from_numpy(model.predict(queries.double().cpu().numpy())).to(queries.device)
