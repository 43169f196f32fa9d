/** The tests of this folder have two forms: CI's, and the long one of `npm run test:long`. */
export const isLong = process.env.VIMGFS_TEST_LONG === '1'

/** What the form that runs asks for. */
export const sized = <T>(ci: T, long: T): T => (isLong ? long : ci)
