/**
 * Runs several test files in one process, one after the other: those in VIMGFS_TEST_FILES. Each file is a test of the
 * root's by its path, and what the file tests with the root of tap lies inside that.
 */
import t from 'tap'

// Files are imported one after the other, so what calls this is the file that is running.
const testOfRoot = t.test.bind(t) as (
  name: string,
  act: (t: any) => Promise<void>,
) => Promise<unknown>

/** What files call on the root. */
const OF_ROOT = [
  ...[
    'test',
    'comment',
    'pass',
    'fail',
    'ok',
    'notOk',
    'equal',
    'not',
    'same',
    'notSame',
    'strictSame',
  ],
  ...[
    'match',
    'notMatch',
    'throws',
    'doesNotThrow',
    'rejects',
    'resolves',
    'type',
    'has',
    'hasStrict',
  ],
]

for (const file of process.env.VIMGFS_TEST_FILES?.split(',') ?? []) {
  await testOfRoot(file, async inner => {
    const root = t as unknown as Record<string, unknown>
    for (const name of OF_ROOT) root[name] = inner[name].bind(inner)
    await import(`../../${file.replace(/\.ts$/, '.js')}`)
  })
}
