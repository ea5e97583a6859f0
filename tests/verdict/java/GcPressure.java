// Nearly all of a small heap is in use: the collector runs again and again. Start with -Xmx160m.
import java.util.ArrayList;
import java.util.List;

public class GcPressure {
    static final List<byte[]> cache = new ArrayList<>();

    static int render(int seed) {
        List<int[]> rows = new ArrayList<>();
        for (int i = 0; i < 4000; i++) rows.add(new int[] {seed, i, i + seed});
        return rows.size();
    }

    public static void main(String[] args) throws InterruptedException {
        for (int i = 0; i < 128_000; i++) cache.add(new byte[1000]);
        System.out.println("ready");
        for (int i = 0; ; i++) {
            for (int j = 0; j < 40; j++) render(i);
            cache.set(i % cache.size(), new byte[1000]);
            Thread.sleep(1);
        }
    }
}
