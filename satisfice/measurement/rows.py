"""What the table of a run holds: a row a method, and what a reader has to know of the whole."""

from pydantic import BaseModel, ConfigDict

from satisfice.measurement import metrics, statistics

SCHEMA_VERSION = 2

MARGIN = 0.01
"""The loss of accuracy, as a share, that a method which "keeps the accuracy" must rule out unless told otherwise
(ours)."""


class Row(BaseModel):
    """One method of a run. Token counts are means over all samples unless the name says otherwise; shares and
    accuracies are from 0 to 1.

    A field is None where it cannot be computed: everything but the counts without a trace; `*_correct` without a
    right trace and `*_wrong` without a wrong one; pass@k and maj@k with one sample; whatever compares for the
    baseline itself and without pairs; the McNemar fields with several samples; the intervals of one problem.

    Attributes:
        number: place of the method in the configuration, from 1.
        method: as spelled.
        n: problems with at least one trace.
        samples: most samples any problem has (the k of avg@k, pass@k and maj@k).
        traces, expected_traces: how many there are, and how many the configuration asks for.
        complete_problems: problems that have all `samples`; pass@k and maj@k are over these.
        accuracy, accuracy_low, accuracy_high: avg@k and its 95 % interval.
        pass_at_k: chance that one of k samples is right.
        coverage: the same for 2, 4, 8, ... below k samples of the k, by their number.
        maj_at_k: share of problems whose most frequent answer is right.
        convention: what `cost` and `token_saving` count, as in the summary; a CSV has nothing but rows.
        cost, cost_correct, cost_wrong, cost_median, cost_p95: tokens under the summary's convention.
        thinking_tokens, answer_tokens, probe_tokens, total_tokens: tokens of each sort, with `_median`, `_p95`,
            `_correct` (mean over right traces) and `_wrong` (mean over wrong ones).
        wrong_over_right: thinking tokens of wrong traces over those of right ones, both means.
        truncated_share: traces that ran into the token limit; they are wrong and counted at full length.
        failed, error_share: responses that failed, and their share of all; they are part of no other number here.
        unclosed_share: traces whose thinking was opened and never closed, be it cut off or ended by the model.
        repetition_share: mean share of repeated n-grams in the thinking; None also where the engine gave no ids.
        repeating_share: traces above `REPEATING`.
        seconds, forward_passes, prefilled_tokens, cached_tokens: means a trace.
        paired_problems, paired_traces: what is compared with the baseline.
        unpaired, unpaired_baseline: traces of the method, and of the baseline, that have no partner.
        paired_accuracy, paired_baseline_accuracy: avg@k of both on the pairs.
        accuracy_difference, accuracy_difference_low, accuracy_difference_high: method minus baseline on the pairs.
        paired_truncated_share, paired_baseline_truncated_share: of the pairs, how often each side was cut off.
        only_method_cut, only_baseline_cut, both_cut: pairs in which the token limit cut the response of one side only,
            and of both.
        uncut_pairs, uncut_difference, uncut_difference_low, uncut_difference_high: pairs in which neither side was
            cut off, and method minus baseline on these. What the token limit alone decides is gone from it.
        only_baseline_correct, only_method_correct, mcnemar_p: discordant pairs and the exact test.
        token_saving, token_saving_low, token_saving_high: 1 - cost / baseline's cost on the pairs.
        accuracy_difference_joint_low, accuracy_difference_joint_high: the ends at the summary's `joint_confidence`,
            which hold for all methods together. Sentences rest on these; with one method compared they are the ends at
            95 %.
        uncut_difference_joint_low, uncut_difference_joint_high: the same of uncut_difference.
        token_saving_joint_low, token_saving_joint_high: the same of token_saving.
        seconds_ratio: seconds over the baseline's seconds on the pairs.
        mcnemar_holm: that p, after Holm for all methods that have one.
        aes: accuracy-efficiency score on the pairs, from the cost under the convention, with the summary's constants.
        aes_strict: the same with the constants 1, 5, 10.
        epr: relative saving per share of problems lost on the pairs; None where none was lost.
        gap: accuracy missing to the best method of the run that costs at most as much (REG).
        area_oaa: AUC-OAA: the mean over t up to 1,000 of the share that is right with fewer than t thinking tokens.
        pareto: whether no other method of the run has at most its cost and at least its accuracy.
    """

    number: int
    method: str
    n: int
    samples: int
    traces: int
    expected_traces: int | None
    complete_problems: int
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    pass_at_k: float | None = None
    coverage: dict[int, float] = {}
    maj_at_k: float | None = None
    convention: str = ""
    cost: float | None = None
    cost_median: float | None = None
    cost_p95: float | None = None
    cost_correct: float | None = None
    cost_wrong: float | None = None
    thinking_tokens: float | None = None
    thinking_tokens_median: float | None = None
    thinking_tokens_p95: float | None = None
    thinking_tokens_correct: float | None = None
    thinking_tokens_wrong: float | None = None
    answer_tokens: float | None = None
    answer_tokens_median: float | None = None
    answer_tokens_p95: float | None = None
    answer_tokens_correct: float | None = None
    answer_tokens_wrong: float | None = None
    probe_tokens: float | None = None
    probe_tokens_median: float | None = None
    probe_tokens_p95: float | None = None
    probe_tokens_correct: float | None = None
    probe_tokens_wrong: float | None = None
    total_tokens: float | None = None
    total_tokens_median: float | None = None
    total_tokens_p95: float | None = None
    total_tokens_correct: float | None = None
    total_tokens_wrong: float | None = None
    wrong_over_right: float | None = None
    truncated_share: float | None = None
    failed: int = 0
    error_share: float | None = None
    unclosed_share: float | None = None
    repetition_share: float | None = None
    repeating_share: float | None = None
    seconds: float | None = None
    forward_passes: float | None = None
    prefilled_tokens: float | None = None
    cached_tokens: float | None = None
    paired_problems: int = 0
    paired_traces: int = 0
    unpaired: int = 0
    unpaired_baseline: int = 0
    paired_accuracy: float | None = None
    paired_baseline_accuracy: float | None = None
    accuracy_difference: float | None = None
    accuracy_difference_low: float | None = None
    accuracy_difference_high: float | None = None
    accuracy_difference_joint_low: float | None = None
    accuracy_difference_joint_high: float | None = None
    paired_truncated_share: float | None = None
    paired_baseline_truncated_share: float | None = None
    only_method_cut: int = 0
    only_baseline_cut: int = 0
    both_cut: int = 0
    uncut_pairs: int | None = None
    uncut_difference: float | None = None
    uncut_difference_low: float | None = None
    uncut_difference_high: float | None = None
    uncut_difference_joint_low: float | None = None
    uncut_difference_joint_high: float | None = None
    only_baseline_correct: int | None = None
    only_method_correct: int | None = None
    mcnemar_p: float | None = None
    mcnemar_holm: float | None = None
    token_saving: float | None = None
    token_saving_low: float | None = None
    token_saving_high: float | None = None
    token_saving_joint_low: float | None = None
    token_saving_joint_high: float | None = None
    seconds_ratio: float | None = None
    aes: float | None = None
    aes_strict: float | None = None
    epr: float | None = None
    gap: float | None = None
    area_oaa: float | None = None
    pareto: bool | None = None


class Summary(BaseModel):
    """The table of a run.

    Attributes:
        model, problems, problems_n: what was run on what, as in the configuration.
        attention: what decoding steps read, as spelled; "dense" for all.
        baseline: the method that the others are compared with.
        convention: the counting convention of cost, saving, AES and Pareto front (`satisfice.trace.CONVENTIONS`).
        margin: the loss of accuracy, as a share, that a method which "keeps the accuracy" must rule out.
        joint_confidence: of the joint intervals: 0.95 divided among the methods compared, after Bonferroni.
        cap: the token limit of a response, None where the configuration has none.
        aes_alpha, aes_beta, aes_gamma: constants of the AES.
        rows: one a method, in the order of the configuration.
        notes: what a reader has to know before believing the table, one sentence each.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    model: str
    problems: str
    problems_n: int | None
    attention: str = "dense"
    baseline: str
    convention: str
    margin: float = MARGIN
    joint_confidence: float = statistics.CONFIDENCE
    cap: int | None
    aes_alpha: float = metrics.AES_ALPHA
    aes_beta: float = metrics.AES_BETA
    aes_gamma: float = metrics.AES_GAMMA
    rows: list[Row]
    notes: list[str]

    @property
    def compared(self) -> list[Row]:
        """The rows that are compared with the baseline."""
        return [row for row in self.rows if row.paired_problems and row.method != self.baseline]

    def row(self, method: str) -> Row:
        """The row of a method.

        Raises:
            KeyError: the run has no such method.
        """
        for row in self.rows:
            if row.method == method:
                return row
        raise KeyError(method)
