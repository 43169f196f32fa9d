/** The order in which changed tables reach the file: each stage is on the disk before the next is written. */
export const STAGE = { refcounts: 0, refcountTable: 1, links: 2 } as const
export const STAGES = Object.keys(STAGE).length
