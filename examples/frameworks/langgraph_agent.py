"""A graph of LangGraph: one node is an agent with a tool, the next one writes the answer."""

from __future__ import annotations

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph

import art_core as art
from art_langgraph import init_chat_model, wrap_rollout


@tool
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


async def rollout(model: art.TrainableModel, a: int, b: int) -> art.Trajectory:
    """Play one attempt."""

    async def play() -> art.Trajectory:
        chat_model = init_chat_model(temperature=1.0, max_tokens=200)
        worker = create_agent(chat_model, tools=[add], system_prompt="Add.")

        async def write(state: MessagesState) -> dict:
            draft = state["messages"][-1].text
            asked = [SystemMessage("Write the sum as a sentence."), HumanMessage(draft)]
            return {"messages": [await chat_model.ainvoke(asked)]}

        graph = StateGraph(MessagesState)
        graph.add_node("work", worker)
        graph.add_node("write", write)
        graph.add_edge(START, "work")
        graph.add_edge("work", "write")
        graph.add_edge("write", END)
        question = HumanMessage(f"{a} + {b}?")
        result = await graph.compile().ainvoke({"messages": [question]})
        return art.Trajectory(reward=float(str(a + b) in result["messages"][-1].text))

    return await wrap_rollout(model, play)()
