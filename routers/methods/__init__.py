"""The routing methods, one file each.

    benchmark_routing        recommended  Routing with benchmark datasets
    knn                      recommended  k nearest example prompts
    learned_mix              recommended  A mix learned for each task
    lora_hub                 recommended  LoraHub: a mix found on a few samples
    retrieval_of_experts     recommended  Retrieval of Experts: a task's prompts vote
    route_llm                recommended  RouteLLM: strong or weak by win rate
    routoo                   recommended  Routoo: predicted score for the cost
    two_part                 recommended  Instruction and content, compared separately
    adapter_soup             comparison   AdapterSoup: the most similar experts, averaged
    airoboros                comparison   Mean distance of each expert's nearest examples
    arrow                    comparison   Arrow: gating by prototypes of the weights
    centroid                 comparison   Nearest mean of example prompts
    classifier               comparison   Linear classifier on embeddings
    dynamic_adapter_merging  comparison   Dynamic Adapter Merging: nearest means of hidden states
    llm_selector             comparison   The base model chooses from descriptions
    lora_retriever           comparison   LoraRetriever: nearest means, mixed
    molora                   comparison   Mo'LoRA: nearest cluster centre
    preference               comparison   A mix by the caller's preference
    tfidf                    comparison   Words, weighted by rarity
    twin_merging             comparison   Twin-Merging: shared and exclusive knowledge
    what_the_weight          comparison   What the Weight: five zero-shot weightings
    zooter                   comparison   Zooter: distilled rewards
    base                     baseline     The base alone
    best_single              baseline     The best model on average
    oracle                   baseline     The expert that the caller names
    random                   baseline     A random expert
    uniform                  baseline     A mix of all experts

Recommended methods are the ones to start with, comparison methods reproduce papers, baseline methods show what routing
is worth. docs/measurements/policies.md says why.
"""
